"""Tasks: what goes in, what must come out, how it is checked. Each is a folder of files."""
