"""The queue of runs behind antico_runs.sh: plan (words → runs), records (what is on disk), workers, slurm."""
