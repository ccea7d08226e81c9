"""Images: reading, writing, resizing, drawing, and the batches that models take."""
