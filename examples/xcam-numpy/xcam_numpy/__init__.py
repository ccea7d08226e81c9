"""An xcam backend in NumPy alone."""
