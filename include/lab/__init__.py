"""A real system on one machine, for the demo and the tests: servers on loopback, nothing mocked.

Each server is usable alone (`lab.postgres`, `lab.objectstore`, `lab.bao`, `lab.prometheus`, `lab.airflow`);
`lab.system.Lab` starts them side by side. Nothing in here is meant for production.
"""
