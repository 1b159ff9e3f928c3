"""Reading files that somebody else wrote, and checksums: used by every room that has files."""
