"""Scripts that travel with a bundle to the device; they import nothing of smidgen."""
