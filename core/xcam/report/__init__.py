"""HTML reports: rendering, thumbnails and templates. Arrays and strings only."""
