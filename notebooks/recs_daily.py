# Databricks notebook source
# MAGIC %md
# MAGIC # Recommendations, once a day
# MAGIC All stages of one configuration; what was delivered since the last run is read.
# MAGIC Install the wheel of recs and numba as libraries of the cluster; networks need torch and
# MAGIC safetensors too. A second job may run `jobs/upkeep.py` (`recs upkeep`) at night.

# COMMAND ----------

from pipelines.compare import check_gates
from pipelines.resources import conf_folder
from pipelines.run import open_lake, run_stages, stages_of
from recs import readers
from recs.config import load_config

# COMMAND ----------

dbutils.widgets.text("config", str(conf_folder() / "demo.yaml"), "Configuration, a YAML file")
dbutils.widgets.text("data", "/Volumes/main/recs/raw", "Folder of the deliveries")
dbutils.widgets.text("root", "/Volumes/main/recs/lake", "Folder of working files")
dbutils.widgets.text("catalog", "main.recs", "Catalog and schema of the tables")
dbutils.widgets.dropdown("mode", "serve", ["serve", "backtest"], "Mode")
dbutils.widgets.text("run_id", "", "Id of the run, kept by a retry; empty for a new one")

# COMMAND ----------

given = {key: dbutils.widgets.get(key) for key in ("data", "root", "catalog", "mode", "run_id")}
config = load_config(
    dbutils.widgets.get("config"), [f"{key}={value}" for key, value in given.items() if value]
)
lake = open_lake(config)
outcome = run_stages(stages_of(config), config, lake)

# COMMAND ----------

# Lists of all models; or the metrics of this run, of which the table keeps those of all runs.
if config.mode == "backtest":
    display(readers.read(lake, "metrics").where(f"run_id = '{outcome.run_id}'"))
else:
    display(readers.read(lake, "recommendations"))

# COMMAND ----------

# A scheduled job fails here if a metric misses its gate; mode serve measures nothing.
if config.mode == "backtest":
    check_gates(config, outcome.metrics)
