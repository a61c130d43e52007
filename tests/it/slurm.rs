//! Releases on a real Slurm of two nodes (`tests/slurm/cluster.sh`), disturbed in every way a cluster disturbs.

mod closing;
mod cluster;
mod disturbed;
mod fake;
mod operated;
mod plain;
mod resumed;
mod submitters;
