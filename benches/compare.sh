#!/usr/bin/env bash
# Times the program beside the pipe that people use today, on a file, interleaved:
#
#   benches/compare.sh FILE [ROUNDS]
#
# Prints the best wall time and the best processor time (user and system, of all
# processes) of each, and the ratios, best against best: noise only ever slows.
# What the program stores is on disk when it ends; so is the pipe's file here, by
# a sync of it and of its directory. Needs zstd and age, and a built `backup`
# (make build).
set -euo pipefail
file=$(realpath "${1:?usage: compare.sh FILE [ROUNDS]}")
rounds=${2:-5}
cd "$(dirname "$0")/.."
backup=${CARGO_TARGET_DIR:-$PWD/target}/release/backup
for tool in "$backup" zstd age age-keygen; do
    command -v "$tool" >/dev/null || {
        echo "compare: $tool is missing" >&2
        exit 1
    }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CONFIG_HOME=$work/config BACKUP_REPO=$work/repository
"$backup" init --quiet
age-keygen -o "$work/key" 2>/dev/null
recipient=$(age-keygen -y "$work/key")

ours_save() { "$backup" save file --quiet <"$file" >"$work/id"; }
pipe_save() {
    zstd -q -3 -T2 -c <"$file" | age -r "$recipient" -o "$work/file.age"
    sync "$work/file.age" "$work"
}
ours_restore() { "$backup" restore "$(cat "$work/id")" --to-stdout --quiet >/dev/null; }
pipe_restore() { age -d -i "$work/key" "$work/file.age" | zstd -q -d >/dev/null; }

# One run: milliseconds of wall time and of processor time.
timed() {
    local TIMEFORMAT='%R %U %S' took
    # The subshell's own errors still reach the terminal.
    took=$({ time "$1" 2>&3; } 3>&2 2>&1)
    awk '{ printf "%d %d\n", $1 * 1000, ($2 + $3) * 1000 }' <<<"$took"
}

declare -A wall cpu
for ((round = 0; round <= rounds; round++)); do
    # What an earlier run left to be written out would be waited for by the next one that syncs.
    for what in ours_save pipe_save ours_restore pipe_restore; do
        sync
        read -r took busy < <(timed "$what")
        # The first round only warms the page cache.
        [ "$round" = 0 ] && continue
        [ "${wall[$what]:-999999999}" -le "$took" ] || wall[$what]=$took
        [ "${cpu[$what]:-999999999}" -le "$busy" ] || cpu[$what]=$busy
    done
    rm -rf "$work/repository/file" "$work/file.age"
done

ratio() { awk "BEGIN { printf \"%.2f\", $1 / ($2 ? $2 : 1) }"; }
printf '%-8s %-9s %9s %9s %6s %s\n' '' '' backup pipe ratio promised
for what in save restore; do
    promised=$([ "$what" = save ] && echo '<= 0.80' || echo '<= 0.60')
    ours=ours_$what pipe=pipe_$what
    printf '%-8s %-9s %6d ms %6d ms %6s %s\n' "$what" wall "${wall[$ours]}" "${wall[$pipe]}" \
        "$(ratio "${wall[$ours]}" "${wall[$pipe]}")" "$promised"
    printf '%-8s %-9s %6d ms %6d ms %6s\n' '' processor "${cpu[$ours]}" "${cpu[$pipe]}" "$(ratio "${cpu[$ours]}" "${cpu[$pipe]}")"
done
