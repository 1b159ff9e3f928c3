"""The toolkit's command and what it is made of."""
