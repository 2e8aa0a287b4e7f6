"""The wire: bytes in, meaning out. No reactor, no files, no SQL, no wall clock."""
