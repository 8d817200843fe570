"""From a model version's files to a torch module that can be moved: one file per kind."""
