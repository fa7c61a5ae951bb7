"""What runs inside the jail; started by path with the standard library alone, so it imports nothing else of SemAlign."""
