# Sourced by scripts that run public commands one after the other, each once.
# Needs: $out, the folder whose done/ remembers what is finished.

mkdir -p "$out/done" "$out/logs"

# step NAME COMMAND...: print the command, run it, note its duration; skip it when it is done.
step() {
    local name=$1 begin end
    shift
    if [ -e "$out/done/$name" ]; then
        echo "== $name: done before"
        return
    fi
    printf '\n== %s\n$ %s\n' "$name" "$*"
    begin=$(date +%s.%N)
    "$@"
    end=$(date +%s.%N)
    python - "$name" "$begin" "$end" "$*" >"$out/done/$name.tmp" <<'PYTHON'
import json, sys
name, begin, end, command = sys.argv[1:]
print(json.dumps({"step": name, "seconds": round(float(end) - float(begin), 1), "command": command}))
PYTHON
    mv "$out/done/$name.tmp" "$out/done/$name"
}
