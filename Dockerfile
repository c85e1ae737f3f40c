# The two commands of README.md: install, then search the embedded digits model.
#   docker build --tag skipsearch .
#   docker run --rm --shm-size 2g --volume "$PWD/results:/home/user/results" skipsearch
# The image has torch with CUDA; `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu` takes the smaller one without.
FROM python:3.13-slim

ARG TORCH_INDEX=https://pypi.org/simple
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt --index-url "$TORCH_INDEX" torch \
    && pip install --no-cache-dir --constraint /src/constraints.txt /src

RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /home/user
ENTRYPOINT ["skipsearch"]
CMD ["run", "digits", "--name", "first", "--trials", "6"]
