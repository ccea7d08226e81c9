"""HTML reports: rendering, thumbnails, charts and templates. The package takes arrays and strings, not results."""
