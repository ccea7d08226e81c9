"""An xcam backend that needs NumPy alone."""
