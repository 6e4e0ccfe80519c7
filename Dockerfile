# A server on a CPU; docs/serve.md shows how it is run.
FROM python:3.12-slim
# An index of PyTorch's builds for CPUs, without which torch brings its libraries for GPUs.
ARG PIP_EXTRA_INDEX_URL
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[serve]' && rm -r /src && useradd --create-home hanmo
# Compiled for processors like this one; on others the first start compiles into the cache.
RUN hanmo cache --warm
USER hanmo
# The weights are converted to the cache once; a volume takes the owner of the folder that is there.
RUN mkdir -p /home/hanmo/.cache
VOLUME /home/hanmo/.cache
# Of the server and of its health check; options of `hanmo serve` but --port follow the image's name.
ENV PORT=8000
EXPOSE $PORT
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:$PORT/health')"
ENTRYPOINT ["sh", "-c", "exec hanmo serve --host 0.0.0.0 --port $PORT \"$@\"", "hanmo"]
