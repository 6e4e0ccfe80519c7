"""The parts of every network: torch modules that know their StackConfig and no family's name."""
