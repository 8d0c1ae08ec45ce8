# The two commands of the README. Both install what is missing (scripts/setup.sh).
.PHONY: demo test setup bench

MODEL := target/tiny-python.dfz

setup:
	@scripts/setup.sh

demo: setup
	cargo build --release --locked --bin deepfuse
	target/release/deepfuse compile tests/checkpoints/tiny-python -o $(MODEL)
	target/release/deepfuse run $(MODEL) --prompt 'def read_file(path):' --max-new-tokens 64 --summary

test: setup
	cargo test --workspace --locked

bench: setup
	cargo bench --locked -p deepfuse-tests
