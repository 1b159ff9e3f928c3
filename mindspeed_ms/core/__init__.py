"""What training is made of: groups, split layers, optimizer, data, configuration."""
