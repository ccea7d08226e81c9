"""HTML reports: rendering, thumbnails, charts and templates. Arrays and strings only; no kind of result is known here."""
