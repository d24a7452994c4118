import sys
sys.path.insert(0,'/work/main')
import numpy as np
from pathlib import Path
from tests.materialize.test_faults import *
from tests.materialize.test_faults import _at,_needed,_read_all
def test_flips(prepared, tmp_path):
    origin,_,_=prepared
    house=_at(origin, copied(origin.root,tmp_path/"store"))
    materialize(house.context,"set"); pin(house.context,"set",2,"gold")
    expected=open_version(house.context,"set").to_arrow(); home=home_of(house.context,"set")
    files=[p for base in (home.delta,home.ipc,home.pins) for p in sorted(Path(str(base)).rglob("*")) if p.is_file()]
    needed=_needed(house,files)
    print([(str(p.relative_to(house.root)),p.stat().st_size) for p in needed])
    import os
    rng=np.random.default_rng(int(os.environ.get("SEED","5")))
    bad=0
    for n in range(int(os.environ.get("N","3000"))):
        path=needed[int(rng.integers(len(needed)))]
        data=flipped(path,rng)
        try:
            _read_all(house,expected)
            new=path.read_bytes(); d=[i for i in range(len(data)) if data[i]!=new[i]]
            print("UNNOTICED",n,path.relative_to(house.root),len(data),d,data[max(0,d[0]-60):d[0]+30],data[d[0]],new[d[0]],flush=True); bad+=1
        except FeatureStoreError: pass
        path.write_bytes(data)
    assert not bad
