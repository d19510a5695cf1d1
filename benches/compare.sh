#!/usr/bin/env bash
# Times the program beside the pipe that people use today, on a file, interleaved:
#
#   benches/compare.sh FILE [ROUNDS]
#
# Prints the best time of each and the ratios, best against best: noise only ever
# slows. Needs zstd and age, and a built `backup` (cargo build --release).
set -euo pipefail
file=$(realpath "${1:?usage: compare.sh FILE [ROUNDS]}")
rounds=${2:-5}
cd "$(dirname "$0")/.."
backup=$PWD/target/release/backup
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
pipe_save() { zstd -q -3 -T2 -c <"$file" | age -r "$recipient" -o "$work/file.age"; }
ours_restore() { "$backup" restore "$(cat "$work/id")" --to-stdout --quiet >/dev/null; }
pipe_restore() { age -d -i "$work/key" "$work/file.age" | zstd -q -d >/dev/null; }

# Milliseconds of one run.
timed() {
    local begun
    begun=$(date +%s%N)
    "$1"
    echo $((($(date +%s%N) - begun) / 1000000))
}

declare -A best
for ((round = 0; round <= rounds; round++)); do
    for what in ours_save pipe_save ours_restore pipe_restore; do
        took=$(timed "$what")
        # The first round only warms the page cache.
        [ "$round" = 0 ] && continue
        [ "${best[$what]:-999999999}" -le "$took" ] || best[$what]=$took
    done
    rm -rf "$work/repository/file"
    [ "$round" = "$rounds" ] || ours_save
done

ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }
printf '%-8s %8s %8s %6s %s\n' '' backup pipe ratio promised
for what in save restore; do
    printf '%-8s %6d ms %5d ms %6s %s\n' "$what" "${best[ours_$what]}" "${best[pipe_$what]}" \
        "$(ratio "${best[ours_$what]}" "${best[pipe_$what]}")" "$([ $what = save ] && echo '<= 0.80' || echo '<= 0.60')"
done
