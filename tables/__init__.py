"""What turns runs into the tables of the paper: recipes, the queue that runs them, the report and its figures."""
