#!/bin/sh
# Time the .tflite files of this bundle on an Android device, with LiteRT's benchmark_model.
#
#   sh android.sh --benchmark path/to/benchmark_model      pushed first; it must be built for the device
#   sh android.sh                                          it lies in /data/local/tmp on the device already
#   sh android.sh --threads "1 2 4" --runs 50 --serial XYZ -o android.json
#
# Needs adb (or its path in $ADB) and a device with USB debugging. Rounds over all files are repeated three times, the
# medians are kept. Then run: smidgen bundle FOLDER --merge android.json
set -eu

threads="1 2 4" runs=50 serial="" tool="" out=android.json rounds=3
place=/data/local/tmp/smidgen
fail() {
  echo "android.sh: $1" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --threads | --runs | --serial | --benchmark | -o | --output) [ $# -gt 1 ] || fail "$1 needs a value" ;;
  esac
  case $1 in
    --threads) threads=$2 ;;
    --runs) runs=$2 ;;
    --serial) serial=$2 ;;
    --benchmark) tool=$2 ;;
    -o | --output) out=$2 ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) fail "there is no option '$1'; see android.sh --help" ;;
  esac
  shift 2
done
case $threads$runs in
  *[!0-9\ ]*) fail "--threads and --runs take whole numbers, as in --threads \"1 2 4\"" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# The device's own standard input would eat the list of files that a loop reads.
on_device() { "${ADB:-adb}" ${serial:+-s "$serial"} "$@" </dev/null; }
command -v "${ADB:-adb}" >/dev/null || fail "adb is missing; install Android's platform tools or name it in \$ADB"
ls "$here"/*.tflite >/dev/null 2>&1 || fail "this bundle has no .tflite file; compress with --target tflite"
[ "$(on_device get-state 2>/dev/null)" = device ] || fail "no device answers; connect one, see 'adb devices'"

on_device shell mkdir -p "$place"
if [ -n "$tool" ]; then
  [ -f "$tool" ] || fail "there is no file '$tool'"
  on_device push "$tool" "$place/benchmark_model" >/dev/null
  on_device shell chmod 755 "$place/benchmark_model"
  tool=$place/benchmark_model
else
  tool=/data/local/tmp/benchmark_model
fi
for file in "$here"/*.tflite; do
  on_device push "$file" "$place/$(basename "$file")" >/dev/null
done

for round in $(seq "$rounds"); do
  for file in "$here"/*.tflite; do
    name=$(basename "$file")
    for count in $threads; do
      log=$logs/$name.$count.$round
      on_device shell "$tool" "--graph=$place/$name" "--num_threads=$count" "--num_runs=$runs" --warmup_runs=5 \
        --use_xnnpack=true >"$log" 2>&1 || {
        tail -n 3 "$log" >&2
        fail "benchmark_model fails on '$name' with $count threads"
      }
      # "Inference timings in us: Init: 8, First inference: 90, Warmup (avg): 70, Inference (avg): 65.5"
      sed -n 's/.*Inference (avg): \([0-9.e+]*\).*/\1/p' "$log" | tail -n 1 >>"$logs/$name.$count"
      [ -s "$logs/$name.$count" ] || fail "benchmark_model told no time for '$name'; is it LiteRT's?"
    done
  done
done

property() { on_device shell getprop "$1" | tr -d '"\\\r\n' | tr -d '[:cntrl:]'; }
digest() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }
{
  printf '{\n "schema_version": 1,\n "device": {"name": "%s", "model": "%s", "machine": "%s", "system": "Android %s"},\n' \
    "$(property ro.product.model)" "$(property ro.product.model)" "$(property ro.product.cpu.abi)" \
    "$(property ro.build.version.release)"
  printf ' "files": ['
  comma=""
  for file in "$here"/*.tflite; do
    name=$(basename "$file")
    printf '%s\n  {"path": "%s", "nbytes": %d, "sha256": "%s", "outputs": null, "timings": [' \
      "$comma" "$name" "$(wc -c <"$file")" "$(digest "$file")"
    inner=""
    for count in $threads; do
      sort -g "$logs/$name.$count" | awk -v threads="$count" -v runs="$((rounds * runs))" -v comma="$inner" '
        { value[NR] = $1 / 1000 }
        END {
          printf "%s\n   {\"threads\": %d, \"latency_ms\": %.6g, \"latency_quartiles_ms\": [%.6g, %.6g], \"runs\": %d, ",
            comma, threads, value[int((NR + 1) / 2)], value[1], value[NR], runs
          printf "\"joules\": null, \"joules_reason\": \"benchmark_model tells no energy\"}"
        }'
      inner=","
    done
    printf ']}'
    comma=","
  done
  printf '\n ]\n}\n'
} >"$out.part"
mv "$out.part" "$out"
echo "written: $out"
