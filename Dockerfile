# glipv2 serve with the small model.
#
#   docker build --tag glipv2 .
#   docker run --rm --publish 127.0.0.1:8000:8000 glipv2
#
# No image was built by this project's checks: they have no Docker. They run the commands of RUN in
# a new virtual environment, and the entry point (tests/product/docker_check.py).
FROM python:3.11-slim-bookworm

# OpenCV's wheel loads these libraries.
RUN apt-get update && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/glipv2
COPY . .

ENV PIP_NO_CACHE_DIR=1
RUN pip install --constraint requirements/constraints.txt ".[mini,serve]"
RUN PIP_CONSTRAINT=requirements/constraints.txt glipv2 setup-detectron2

# The service reads requests from strangers: it runs without rights to change its own files.
RUN useradd --create-home glipv2
USER glipv2
WORKDIR /home/glipv2

EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# The port is reachable from outside the container only as far as --publish allows.
ENTRYPOINT ["glipv2", "serve", "--host", "0.0.0.0"]
