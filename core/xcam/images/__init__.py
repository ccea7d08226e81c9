"""Reading, writing, preprocessing and drawing on images."""
