# What a newcomer and CI call. Everything runs as root on Debian 12 with a Rust toolchain and make.
#
#   make demo          three hosts, one control plane, every promise checked on real traffic
#   make demo KEEP=1   the same, left up to look around; `make demo-clean` takes it down
#   make test          format, lints, house rules, unit, store, end-to-end, booted machines
#   make test-all      the same, test-ansible and virtual machines
#   make sizes         the release build: static, size, memory of an idle agent
#   make bench         what the mesh costs beside direct TCP, on the release build; QUICK=1 RECORD=1
#   make instructions  how many instructions single steps take, against the record (needs valgrind)
#   make soak          ten minutes of random conversations, every byte checked; SECONDS=60 for one
#   make vm            the service on booted Debian machines (the first run makes their roots: four minutes)
#   make packages      deb and rpm of the release build      make repo   signed apt and dnf repositories of them
#   make images        OCI images of both programs
#   make test-packages their whole life on booted Debian machines, by apt and dnf
#   make vagrant-box   boxes for libvirt from a Debian mirror    make vagrant-check   the estate of vagrant/, up and down
#   make test-ansible  the Ansible collection on booted machines, over SSH
#   make build         both programs, quick to build      make release   as they ship

SHELL := /bin/bash -o pipefail
TARGET := x86_64-unknown-linux-gnu
# Rust's name of what ARCH says.
FOR := $(if $(filter arm64,$(ARCH)),aarch64-unknown-linux-gnu,$(TARGET))
DEBUG := target/$(TARGET)/debug
RELEASE := target/$(TARGET)/release
CARGO_FLAGS ?= --locked

SCENARIOS := request kill-controlplane partition reboot-storm rolling-upgrade

.PHONY: demo demo-clean test test-all build release tools lint suites e2e vm sizes bench soak instructions packages repo images test-packages \
	test-ansible ansible vagrant-tools vagrant-box vagrant-repository vagrant-collection vagrant-up vagrant-check $(addprefix vagrant-,$(SCENARIOS))

demo: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(DEBUG)/demo $(if $(KEEP),--keep)

demo-clean:
	$(DEBUG)/demo --clean

# Says what it installs; silent when nothing is missing.
tools:
	@tests/tools.sh

build:
	cargo build $(CARGO_FLAGS) --workspace --bins

release:
	cargo build $(CARGO_FLAGS) --release -p cli -p controlplane --bins

test: tools lint suites
	@echo "make test: all suites passed"

# What takes too long for every day, too.
test-all: test test-ansible vagrant-check
	@echo "make test-all: all suites passed"

lint:
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) --workspace --test ansible -- -D warnings

# Every suite of every room: unit, component, store (SQLite and Postgres), house rules, end-to-end,
# booted machines, the commands of the documents. Two tests at a time: there may be two cores only.
suites:
	cargo build $(CARGO_FLAGS) --workspace --bins
	RUST_TEST_THREADS=2 cargo test $(CARGO_FLAGS) --workspace
	$(DEBUG)/xtask codegen --check

# Real programs in network namespaces. Two at a time: there may be two cores only.
e2e:
	cargo build $(CARGO_FLAGS) --workspace --bins
	cargo test $(CARGO_FLAGS) --workspace --test e2e -- --test-threads 2

# The agent as a service of booted machines: systemd, journald, resolved, units, reboots.
vm: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	cargo test $(CARGO_FLAGS) --workspace --test vm -- --test-threads 2 --show-output

# The promises about size, on the programs as they ship. Not part of `make test`: the release build of both
# programs takes as long as all of its suites.
sizes: release
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(DEBUG)/sizes $(RELEASE)

# The standard work through the release build beside direct TCP. QUICK=1: seconds instead of minutes.
# RECORD=1: keeps the run in tests/bench/recorded.json. PROGRAMS=FOLDER: measures that `tombolo`, builds none.
bench: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(if $(PROGRAMS),,cargo build $(CARGO_FLAGS) --release -p cli --bins)
	$(DEBUG)/bench --programs $(or $(PROGRAMS),$(RELEASE)) \
		$(if $(QUICK),--seconds 1 --rounds 1 --hold 1000) $(if $(RECORD),--record) $(BENCH_FLAGS)

# Random sizes, half-closes, resets and slow readers through every tunnel, each byte checked by its position.
# PROGRAMS=FOLDER: with that `tombolo`, builds none. Its short form is part of `make e2e`.
SECONDS ?= 600
soak: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(if $(PROGRAMS),,cargo build $(CARGO_FLAGS) --release -p cli --bins)
	$(DEBUG)/soak $(SECONDS) $(or $(PROGRAMS),$(RELEASE))

# Single steps under callgrind, compared with tests/bench/instructions.json; `cargo bench -p bench` times them.
# RECORD=1: the counts of now are the record.
instructions:
	cargo build $(CARGO_FLAGS) --profile bench -p bench --bin instructions
	$(RELEASE)/instructions $(if $(RECORD),--record)

# VERSION=1.2.3 makes them of another version, ARCH=arm64 for that machine (docs/packages.md says what that needs),
# PROGRAMS=FOLDER of programs that are there (with ARCH also NATIVE=FOLDER, of such that run here),
# ARCHIVE_KEY=FILE with the keyring's package.
PACKAGES ?= target/packages
packages: tools
	$(if $(PROGRAMS),,cargo build $(CARGO_FLAGS) --release --target $(FOR) -p cli -p controlplane --bins)
	$(if $(ARCH),$(if $(NATIVE),,cargo build $(CARGO_FLAGS) --release -p cli -p controlplane --bins))
	cargo xtask package --programs $(or $(PROGRAMS),target/$(FOR)/release) --out $(PACKAGES) \
		$(if $(VERSION),--version $(VERSION)) \
		$(if $(ARCH),--arch $(ARCH) --native-programs $(or $(NATIVE),$(RELEASE))) $(if $(ARCHIVE_KEY),--archive-key $(ARCHIVE_KEY))

# OCI archives of both programs, for `podman load` and `skopeo copy`; no daemon is needed.
IMAGES ?= target/images
images: tools
	$(if $(PROGRAMS),,cargo build $(CARGO_FLAGS) --release -p cli -p controlplane --bins)
	packaging/images.sh $(or $(PROGRAMS),$(RELEASE)) $(IMAGES)

# KEY=ID signs with that key of GNUPGHOME; without it a key of no worth is made, good for a day. URL is where
# hosts will find it. (`make` and not $(MAKE): a line with that in it runs also under `make -n`.)
REPOSITORY ?= target/repository
repo: tools
	@set -e; key="$(KEY)"; \
	if [ -z "$$key" ]; then export GNUPGHOME=$(abspath target/test-key); key=$$(packaging/test-key.sh); fi; \
	gpg --batch --yes --output target/archive-key.gpg --export "$$key"; \
	make --no-print-directory packages ARCHIVE_KEY=target/archive-key.gpg; \
	packaging/repo.sh --packages $(PACKAGES) --out $(REPOSITORY) --key "$$key" $(if $(URL),--url $(URL)); \
	[ -n "$(KEY)" ] || gpgconf --kill gpg-agent

# Of the debug build, or of PROGRAMS=FOLDER. Two at a time: there may be two cores only.
test-packages: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(if $(PROGRAMS),TOMBOLO_PROGRAMS=$(abspath $(PROGRAMS))) cargo test $(CARGO_FLAGS) --workspace --test packages \
		-- --test-threads 2 --show-output

# The estate of vagrant/ (its README.md). Where there is no libvirt and no KVM: `vagrant/sandbox.sh bash`, and all of
# these from there.
VAGRANT := target/vagrant
vagrant-tools:
	@vagrant/tools.sh

# Made once: delete a box to have it made again.
vagrant-box: vagrant-tools $(VAGRANT)/debian-12.box $(VAGRANT)/dnf.box
$(VAGRANT)/debian-12.box: vagrant/box.sh
	vagrant/box.sh debian $@
$(VAGRANT)/dnf.box: vagrant/box.sh
	vagrant/box.sh dnf $@

# What the estate installs: of the debug build, or of PROGRAMS=FOLDER; VERSION=1.2.3 adds that version.
vagrant-repository: tools
	$(if $(PROGRAMS),,cargo build $(CARGO_FLAGS) --workspace --bins)
	vagrant/repository.sh $(or $(PROGRAMS),$(DEBUG)) $(VAGRANT) $(VERSION)

# What provisions it.
vagrant-collection: ansible
	$(ANSIBLE)/bin/ansible-galaxy collection build ansible --force --output-path $(VAGRANT)
	cd vagrant && ../$(ANSIBLE)/bin/ansible-galaxy collection install ../$(VAGRANT)/tombolo-mesh-1.0.0.tar.gz --offline --force

vagrant-up: vagrant-box vagrant-repository vagrant-collection
	cd vagrant && vagrant up --no-parallel

$(addprefix vagrant-,$(filter-out rolling-upgrade,$(SCENARIOS))): vagrant-%:
	vagrant/scenario.sh $*

# To VERSION, of the same programs unless PROGRAMS says otherwise.
vagrant-rolling-upgrade: VERSION ?= 9.9.9
vagrant-rolling-upgrade: vagrant-repository
	VERSION=$(VERSION) vagrant/scenario.sh rolling-upgrade

# The estate up, a meshed request, the estate gone; nothing is left. Half an hour where processors are emulated.
# ALSO="partition reboot-storm": these too, before it goes.
vagrant-check: vagrant-box vagrant-repository vagrant-collection
	vagrant/sandbox.sh vagrant/check.sh $(ALSO)

# The controller: Ansible of these versions in a venv of its own.
ANSIBLE := target/ansible/venv
$(ANSIBLE)/bin/ansible-lint: tests/ansible/requirements.txt
	python3 -m venv $(ANSIBLE)
	$(ANSIBLE)/bin/pip install --quiet --disable-pip-version-check --requirement tests/ansible/requirements.txt
	touch $@

ansible: $(ANSIBLE)/bin/ansible-lint

# One at a time: three machines each.
test-ansible: tools ansible
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(if $(PROGRAMS),TOMBOLO_PROGRAMS=$(abspath $(PROGRAMS))) cargo test $(CARGO_FLAGS) --workspace --test ansible \
		-- --test-threads 1 --show-output
