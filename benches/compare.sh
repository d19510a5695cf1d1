#!/usr/bin/env bash
# Times the program beside the pipes that people use today, interleaved:
#
#   benches/compare.sh stream FILE [ROUNDS]   a file, beside zstd and age
#   benches/compare.sh repositories FILE [ROUNDS]   a file into three directories at once, beside one
#   benches/compare.sh cluster [ROUNDS]       a PostgreSQL cluster of 1.7 GB that is made for it, beside
#                                             pg_basebackup, zstd, age and tar; and one segment of WAL
#
# Prints the best wall time and the best processor time (user and system, of all processes but the server) of each, the ratios, best
# against best (noise only ever slows), and the most memory that the program had.
# What the program stores is on disk when it ends; so is what the pipes write here, by a sync of it and of its directory. Needs zstd, age, GNU
# time, for a cluster PostgreSQL with pgbench, and a built `backup` (make build).
set -euo pipefail

cd "$(dirname "$0")/.."
backup=${CARGO_TARGET_DIR:-$PWD/target}/release/backup
work=$(mktemp -d)
trap finish EXIT
export XDG_CONFIG_HOME=$work/config BACKUP_REPO=$work/repository
rounds=5
owner=()
declare -A wall cpu peak

finish() {
    [ ! -d "$work/server" ] || scripts/pg-cluster stop "$work/server" || true
    rm -rf "$work"
}

needs() {
    local tool
    for tool in "$backup" zstd age age-keygen time "$@"; do
        type -P "$tool" >/dev/null || {
            echo "compare: $tool is missing" >&2
            exit 1
        }
    done
}

# --- a stream ---

stream_backup_save() { ours save file --quiet <"$file" >"$work/id"; }
stream_pipe_save() {
    zstd -q -3 -T2 -c <"$file" | age -r "$recipient" -o "$work/piped.age"
    sync "$work/piped.age" "$work"
}
stream_backup_restore() { ours restore "$(cat "$work/id")" --to-stdout --quiet >/dev/null; }
stream_pipe_restore() { age -d -i "$work/key" "$work/piped.age" | zstd -q -d >/dev/null; }

# --- several repositories ---

into() { ours save file --quiet "$@" <"$file" >"$work/id"; }
repositories_three_save() { into --repo "$work/repository" --repo "$work/second" --repo "$work/third"; }
repositories_one_save() { into; }

# --- a cluster ---

copied() { ours save file --quiet --method "$1" --base-backup "host=$PGHOST port=$PGPORT user=$PGUSER" >"$work/id"; }
cluster_backup_save() { copied stream; }
cluster_backup_local() { copied local; }
cluster_pipe_local() { cluster_pipe_save; }
cluster_pipe_save() {
    pg_basebackup -Ft -X none -c fast -D - 2>/dev/null | zstd -q -3 -T2 | age -r "$recipient" -o "$work/piped.age"
    sync "$work/piped.age" "$work"
}
restored() { ours restore "$(cat "$work/id")" --to "$work/restored/$1" --quiet "${owner[@]}"; }
untarred() {
    mkdir -p "$work/untarred/$1"
    age -d -i "$work/key" "$work/piped.age" | zstd -q -d | tar x -C "$work/untarred/$1"
    sync -f "$work/untarred/$1"
}
cluster_backup_restore() { restored stream; }
cluster_pipe_restore() { untarred stream; }
# Of what was saved by local copy.
cluster_backup_restored() { restored local; }
cluster_pipe_restored() { untarred local; }
cluster_backup_push() { ours wal push "$segment" --quiet --target file; }
cluster_pipe_push() {
    zstd -q -1 -f "$segment" -o "$work/segment.zst"
    sync "$work/segment.zst" "$work"
}

make_cluster() {
    mkdir "$work/server"
    chmod 711 "$work" # the server's user has to pass
    eval "$(scripts/pg-cluster start "$work/server")"
    createdb bench
    PATH="$(scripts/pg-cluster bindir):$PATH" pgbench -q -i -s 70 bench 2>/dev/null
    psql -qd bench >/dev/null <<'SQL'
create table words as
    select g as id, now() + g * interval '1 second' as at,
        md5(g::text) || ' order ' || g || ' of customer ' || g % 1000 || ' was shipped to ' || md5((g % 5000)::text) as body
    from generate_series(1, 3600000) g;
select pg_switch_wal();
checkpoint;
SQL
    # A segment full of log.
    segment=$work/$(basename "$(find "$work/server/data/pg_wal" -maxdepth 1 -name '0*' -size 16M | sort | head -1)")
    cp "$work/server/data/pg_wal/$(basename "$segment")" "$segment"
    [ "$(id -u)" != 0 ] || owner=(--owner "$(stat -c %U "$work/server/data")")
}

# --- measuring ---

# The program, which leaves the most KiB that it had in a file.
ours() { env time -o "$work/peak" -f %M "$backup" "$@"; }

# One run: milliseconds of wall time and of processor time.
timed() {
    local TIMEFORMAT='%R %U %S' took
    # The subshell's own errors still reach the terminal.
    took=$({ time "$1" 2>&3; } 3>&2 2>&1)
    awk '{ printf "%d %d\n", $1 * 1000, ($2 + $3) * 1000 }' <<<"$took"
}

# Runs a round of everything that is asked for.
run_round() {
    local what took busy most
    for what in "$@"; do
        # What an earlier run left to be written out would be waited for by the next one that syncs.
        [ -z "${PGHOST:-}" ] || psql -qd bench -c checkpoint
        sync
        read -r took busy < <(timed "$what")
        most=$(cat "$work/peak")
        # The first round only warms the page cache.
        [ "$round" != 0 ] || continue
        [ "${wall[$what]:-999999999}" -le "$took" ] || wall[$what]=$took
        [ "${cpu[$what]:-999999999}" -le "$busy" ] || cpu[$what]=$busy
        [ "${peak[$what]:-0}" -ge "$most" ] || peak[$what]=$most
    done
    rm -rf "$work"/{repository,second,third}/file "$work"/piped.age "$work"/segment.zst "$work"/restored "$work"/untarred
}

ratio() { awk "BEGIN { printf \"%.2f\", $1 / ($2 ? $2 : 1) }"; }

# What was measured of one thing, against what was promised.
report() {
    local what=$1 promised=$2 ours theirs
    ours=${mode}_backup_$what theirs=${mode}_pipe_$what
    printf '%-8s %-9s %6d ms %6d ms %6s <= %s\n' "$what" wall "${wall[$ours]}" "${wall[$theirs]}" \
        "$(ratio "${wall[$ours]}" "${wall[$theirs]}")" "$promised"
    printf '%-8s %-9s %6d ms %6d ms %6s\n' '' processor "${cpu[$ours]}" "${cpu[$theirs]}" "$(ratio "${cpu[$ours]}" "${cpu[$theirs]}")"
    printf '%-8s %-9s %5d KiB\n' '' memory "${peak[$ours]}"
}

mode=${1:-}
case "$mode" in
    stream)
        file=$(realpath "${2:?usage: compare.sh stream FILE [ROUNDS]}")
        rounds=${3:-$rounds}
        needs
        what=(save 0.80 restore 0.60)
        ;;
    repositories)
        file=$(realpath "${2:?usage: compare.sh repositories FILE [ROUNDS]}")
        rounds=${3:-$rounds}
        needs
        ;;
    cluster)
        rounds=${2:-7}
        needs pg_basebackup psql createdb tar
        what=(save 0.50 restore 0.70 local 0.33 restored 0.60 push 1.30)
        make_cluster
        ;;
    *)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
"$backup" init --quiet
age-keygen -o "$work/key" 2>/dev/null
recipient=$(age-keygen -y "$work/key")

if [ "$mode" = repositories ]; then
    "$backup" init --quiet --repo "$work/second" --repo "$work/third"
    for ((round = 0; round <= rounds; round++)); do
        run_round repositories_three_save repositories_one_save
    done
    printf '%-10s %9s %9s %6s %s\n' '' three one ratio promised
    three=repositories_three_save one=repositories_one_save
    printf '%-10s %6d ms %6d ms %6s\n' wall "${wall[$three]}" "${wall[$one]}" "$(ratio "${wall[$three]}" "${wall[$one]}")"
    printf '%-10s %6d ms %6d ms %6s <= 1.15\n' processor "${cpu[$three]}" "${cpu[$one]}" "$(ratio "${cpu[$three]}" "${cpu[$one]}")"
    printf '%-10s %5d KiB %5d KiB\n' memory "${peak[$three]}" "${peak[$one]}"
    exit
fi

steps=()
for ((i = 0; i < ${#what[@]}; i += 2)); do
    steps+=("${mode}_backup_${what[i]}" "${mode}_pipe_${what[i]}")
done
for ((round = 0; round <= rounds; round++)); do
    run_round "${steps[@]}"
done
printf '%-8s %-9s %9s %9s %6s %s\n' '' '' backup pipe ratio promised
for ((i = 0; i < ${#what[@]}; i += 2)); do
    report "${what[i]}" "${what[i + 1]}"
done
