"""What every room may use and no room is about: files written whole or not at all, differences in words, versions."""
