# What an exhaustive search measured, as tests/unit/tune_cost_test.cpp reads it: by case, by kernel (main loop, warps, producers,
# block_kv, stages, blocks), by plan, the median microseconds. Left out is what took more than `within` (1.2) times the best. Kernels
# that spill where others do not are not measured.
#   sapwood tune --workloads tests/workloads/fasttree.json --layout random --exhaustive --fresh --db DIR --json FILE
#   jq -sc -f tests/measured/listed.jq FILE > tests/measured/fasttree_h100.json
# Of a search that is not exhaustive all that was measured is kept: what is not there was not tried.
#   sapwood tune --workloads tests/workloads/spec.json --case SN- --page 16 --layout random --fresh --db DIR --json FILE
# and the same of beam.json, --case BM4; then
#   jq -sc --arg device "NVIDIA H200" --arg how "sapwood tune --fresh" --arg within 100 -f tests/measured/listed.jq FILE FILE \
#     > tests/measured/verify_h200.json
def kernel: "\(.mainloop),\(.warps),\(.producers),\(.block_kv),\(.stages),\(.blocks)";
def plan: [if .split > 0 then "split=\(.split)" else empty end, if .rows > 0 then "rows=\(.rows)" else empty end] | join(",");
def entry: if .status == "pruned:spill" then {spills: 1} else {(.config | plan): ((.median_us * 100 | round) / 100)} end;
def within: $ARGS.named.within // "1.2" | tonumber;
def near($best): .status == "pruned:spill" or (.status == "ok" and .median_us > 0 and .median_us <= within * $best);
{
  measured: "\($ARGS.named.how // "sapwood tune --exhaustive --fresh"), policy graph-coldL2/1",
  device: ($ARGS.named.device // "NVIDIA H100 80GB HBM3"),
  target: "sm_90a",
  cases: (map(.best_us as $best
    | {(.case): (reduce (.candidates[] | select(near($best))) as $c ({}; .[$c.config | kernel] += ($c | entry)))}) | add)
}
