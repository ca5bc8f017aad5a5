"""Raw data to fixed-shape batches: sources -> records -> corpus -> tasks -> packing -> loader. Knows no model."""
