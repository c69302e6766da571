"""The bridge between Airflow and `recovery`: connections, task bodies, assets. DAG files hold no logic of their own."""
