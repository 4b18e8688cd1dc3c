"""Each module prints one table. Compare CPU per turn first, ratios taken in one run second, absolute times never."""
