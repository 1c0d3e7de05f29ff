# docker build -t untied . && docker run --rm -v "$PWD/runs:/home/user/runs" untied compare
FROM python:3.12-slim
RUN useradd --create-home user
WORKDIR /home/user/source
COPY --chown=user . .
RUN pip install --no-cache-dir ".[lab]"
USER user
WORKDIR /home/user
ENTRYPOINT ["untied"]
CMD ["--help"]
