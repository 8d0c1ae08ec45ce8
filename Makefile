# The commands of the README. Each installs what is missing first (scripts/setup.sh).
.PHONY: demo test bench setup

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
DEEPFUSE := $(TARGET_DIR)/release/deepfuse
MODEL := $(TARGET_DIR)/tiny-python.dfz
PROMPT := def read_file(path):

# Compiles a small model, trained on Python, and lets it write.
demo: setup
	cargo build --release --locked --bin deepfuse
	$(DEEPFUSE) compile tests/checkpoints/tiny-python -o $(MODEL)
	@printf '\nThe model continues this line:\n\n%s' '$(PROMPT)'
	@$(DEEPFUSE) run $(MODEL) --prompt '$(PROMPT)' --max-new-tokens 48 --summary

test: setup
	cargo test --workspace --locked

# Times the kernels of DeepSeek-V2-Lite on this machine, fusion and compile of V3 at several depths, then the small model.
bench: setup
	cargo run --release --locked -p deepfuse-codegen --example kernels
	cargo run --release --locked --example growth
	cargo build --release --locked --bin deepfuse
	$(DEEPFUSE) compile tests/checkpoints/tiny-python -o $(MODEL)
	$(DEEPFUSE) bench $(MODEL) --batch 1,8

setup:
	@scripts/setup.sh
