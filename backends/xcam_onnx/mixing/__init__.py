"""Mixed models: a quantised model, some of whose nodes are those of the float model again."""
