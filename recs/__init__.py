"""recs: distributed training of recommenders on Spark, Torch and Delta."""

__version__ = "0.1.0"
