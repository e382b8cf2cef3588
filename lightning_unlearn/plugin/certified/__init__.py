"""Ready LightningModules whose heads are solved, and certified."""
