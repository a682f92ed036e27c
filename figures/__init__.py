"""Studies and figures: each is a module with commands of its own, run from the top folder."""
