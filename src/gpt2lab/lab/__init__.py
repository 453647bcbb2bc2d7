"""The laboratory: `train` (training with samples, HellaSwag and trackers), `forecast` and `check`."""
