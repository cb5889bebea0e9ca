"""Pictures and videos: files, sizes, colors, formats."""
