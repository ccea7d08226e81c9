"""Repair: the fewest places of a quantised model to put back into float."""
