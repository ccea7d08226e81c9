"""Repair: the fewest parts of a quantised model to put back into float."""
