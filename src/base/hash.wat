;; The checksums of the data plane, over the lane's memory in place: XXH3-64 (seed 0, default secret) and CRC32C.
;; Specified by doc/xxhash_spec.md of xxHash 0.8 and by RFC 3720 appendix B.4. `tools/hash-wasm.mjs` assembles it.
;;
;; The first MiB of the memory is ours:
;;     0 ..   191   the default secret of XXH3
;;  4096 .. 20479   CRC32C tables: 16 x 256 words, table n advances a byte by n further bytes; the host fills them
;; 20480 .. 25119   CRC32C of longer runs: 544 bytes of what has been folded last, then up to 4096 that follow
;; 25600 .. 26687   the last 544 folded bytes, and 544 zeroes behind them
;; 27136 .. 27679   what is left of a run when it has been folded
;; 32768 .. 38079   what is left of a long run when it has been folded for the first time
;; 40960 .. 117087  of a long run: 5280 bytes of what has been folded last, up to 65536 that follow, 5312 zeroes
(module
  (import "lane" "memory" (memory 2 32768))

  (data (i32.const 0)
    "\b8\fe\6c\39\23\a4\4b\be\7c\01\81\2c\f7\21\ad\1c\de\d4\6d\e9\83\90\97\db\72\40\a4\a4\b7\b3\67\1f"
    "\cb\79\e6\4e\cc\c0\e5\78\82\5a\d0\7d\cc\ff\72\21\b8\08\46\74\f7\43\24\8e\e0\35\90\e6\81\3a\26\4c"
    "\3c\28\52\bb\91\c3\00\cb\88\d0\65\8b\1b\53\2e\a3\71\64\48\97\a2\0d\f9\4e\38\19\ef\46\a9\de\ac\d8"
    "\a8\fa\76\3f\e3\9c\34\3f\f9\dc\bb\c7\c7\0b\4f\1d\8a\51\e0\4b\cd\b4\59\31\c8\9f\7e\c9\d9\78\73\64"
    "\ea\c5\ac\83\34\d3\eb\c3\c5\81\a0\ff\fa\13\63\eb\17\0d\dd\51\b7\f0\da\49\d3\16\55\26\29\d4\68\9e"
    "\2b\16\be\58\7d\47\a1\fc\8f\f8\b8\d1\7a\d0\31\ce\45\cb\3a\8f\95\16\04\28\af\d7\fb\ca\bb\4b\40\7e")

  ;; ------------------------------------------------------------------ XXH3: what the lengths share

  ;; The two halves of the 128-bit product, xored.
  (func $fold (param $a i64) (param $b i64) (result i64)
    (local $al i64) (local $ah i64) (local $bl i64) (local $bh i64) (local $ll i64) (local $hl i64) (local $lh i64) (local $mid i64)
    (local.set $al (i64.and (local.get $a) (i64.const 0xffffffff)))
    (local.set $ah (i64.shr_u (local.get $a) (i64.const 32)))
    (local.set $bl (i64.and (local.get $b) (i64.const 0xffffffff)))
    (local.set $bh (i64.shr_u (local.get $b) (i64.const 32)))
    (local.set $ll (i64.mul (local.get $al) (local.get $bl)))
    (local.set $hl (i64.mul (local.get $ah) (local.get $bl)))
    (local.set $lh (i64.mul (local.get $al) (local.get $bh)))
    (local.set $mid (i64.add
      (i64.add (i64.shr_u (local.get $ll) (i64.const 32)) (i64.and (local.get $hl) (i64.const 0xffffffff)))
      (local.get $lh)))
    (i64.xor
      (i64.add
        (i64.add (i64.shr_u (local.get $hl) (i64.const 32)) (i64.shr_u (local.get $mid) (i64.const 32)))
        (i64.mul (local.get $ah) (local.get $bh)))
      (i64.or (i64.shl (local.get $mid) (i64.const 32)) (i64.and (local.get $ll) (i64.const 0xffffffff)))))

  (func $mix16 (param $at i32) (param $key i32) (result i64)
    (call $fold
      (i64.xor (i64.load (local.get $at)) (i64.load (local.get $key)))
      (i64.xor (i64.load offset=8 (local.get $at)) (i64.load offset=8 (local.get $key)))))

  (func $avalanche (param $h i64) (result i64)
    (local.set $h (i64.xor (local.get $h) (i64.shr_u (local.get $h) (i64.const 37))))
    (local.set $h (i64.mul (local.get $h) (i64.const 0x165667919E3779F9)))
    (i64.xor (local.get $h) (i64.shr_u (local.get $h) (i64.const 32))))

  (func $avalanche64 (param $h i64) (result i64)
    (local.set $h (i64.xor (local.get $h) (i64.shr_u (local.get $h) (i64.const 33))))
    (local.set $h (i64.mul (local.get $h) (i64.const 0xC2B2AE3D27D4EB4F)))
    (local.set $h (i64.xor (local.get $h) (i64.shr_u (local.get $h) (i64.const 29))))
    (local.set $h (i64.mul (local.get $h) (i64.const 0x165667B19E3779F9)))
    (i64.xor (local.get $h) (i64.shr_u (local.get $h) (i64.const 32))))

  (func $swap32 (param $x i64) (result i64)
    (local.set $x (i64.or
      (i64.shl (i64.and (local.get $x) (i64.const 0x00ff00ff00ff00ff)) (i64.const 8))
      (i64.and (i64.shr_u (local.get $x) (i64.const 8)) (i64.const 0x00ff00ff00ff00ff))))
    (i64.or
      (i64.shl (i64.and (local.get $x) (i64.const 0x0000ffff0000ffff)) (i64.const 16))
      (i64.and (i64.shr_u (local.get $x) (i64.const 16)) (i64.const 0x0000ffff0000ffff))))

  ;; ------------------------------------------------------------------ XXH3: 0 to 240 bytes

  (func $hash0to16 (param $at i32) (param $length i32) (result i64)
    (local $lo i64) (local $hi i64)
    (if (i32.gt_u (local.get $length) (i32.const 8)) (then
      (local.set $lo (i64.xor (i64.load (local.get $at))
        (i64.xor (i64.load (i32.const 24)) (i64.load (i32.const 32)))))
      (local.set $hi (i64.xor (i64.load (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 8)))
        (i64.xor (i64.load (i32.const 40)) (i64.load (i32.const 48)))))
      (return (call $avalanche (i64.add
        (i64.add (i64.extend_i32_u (local.get $length)) (i64.rotl (call $swap32 (local.get $lo)) (i64.const 32)))
        (i64.add (local.get $hi) (call $fold (local.get $lo) (local.get $hi))))))))
    (if (i32.ge_u (local.get $length) (i32.const 4)) (then
      (local.set $lo (i64.xor
        (i64.add
          (i64.load32_u (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 4)))
          (i64.shl (i64.load32_u (local.get $at)) (i64.const 32)))
        (i64.xor (i64.load (i32.const 8)) (i64.load (i32.const 16)))))
      (local.set $lo (i64.xor (local.get $lo)
        (i64.xor (i64.rotl (local.get $lo) (i64.const 49)) (i64.rotl (local.get $lo) (i64.const 24)))))
      (local.set $lo (i64.mul (local.get $lo) (i64.const 0x9FB21C651E98DF25)))
      (local.set $lo (i64.xor (local.get $lo)
        (i64.add (i64.shr_u (local.get $lo) (i64.const 35)) (i64.extend_i32_u (local.get $length)))))
      (local.set $lo (i64.mul (local.get $lo) (i64.const 0x9FB21C651E98DF25)))
      (return (i64.xor (local.get $lo) (i64.shr_u (local.get $lo) (i64.const 28))))))
    (if (local.get $length) (then
      (return (call $avalanche64 (i64.xor
        (i64.extend_i32_u (i32.or
          (i32.or
            (i32.shl (i32.load8_u (local.get $at)) (i32.const 16))
            (i32.shl (i32.load8_u (i32.add (local.get $at) (i32.shr_u (local.get $length) (i32.const 1)))) (i32.const 24)))
          (i32.or
            (i32.load8_u (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 1)))
            (i32.shl (local.get $length) (i32.const 8)))))
        (i64.extend_i32_u (i32.xor (i32.load (i32.const 0)) (i32.load (i32.const 4)))))))))
    (call $avalanche64 (i64.xor (i64.load (i32.const 56)) (i64.load (i32.const 64)))))

  ;; Pairs of 16 bytes from the outside inwards, as many as the length has.
  (func $hash17to128 (param $at i32) (param $length i32) (result i64)
    (local $sum i64) (local $pair i32)
    (local.set $sum (i64.mul (i64.extend_i32_u (local.get $length)) (i64.const 0x9E3779B185EBCA87)))
    (local.set $pair (i32.shr_u (i32.sub (local.get $length) (i32.const 1)) (i32.const 5)))
    (loop $pairs
      (local.set $sum (i64.add (local.get $sum) (i64.add
        (call $mix16
          (i32.add (local.get $at) (i32.shl (local.get $pair) (i32.const 4)))
          (i32.shl (local.get $pair) (i32.const 5)))
        (call $mix16
          (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.shl (i32.add (local.get $pair) (i32.const 1)) (i32.const 4)))
          (i32.add (i32.shl (local.get $pair) (i32.const 5)) (i32.const 16))))))
      (local.set $pair (i32.sub (local.get $pair) (i32.const 1)))
      (br_if $pairs (i32.ge_s (local.get $pair) (i32.const 0))))
    (call $avalanche (local.get $sum)))

  (func $hash129to240 (param $at i32) (param $length i32) (result i64)
    (local $sum i64) (local $round i32) (local $rounds i32)
    (local.set $sum (i64.mul (i64.extend_i32_u (local.get $length)) (i64.const 0x9E3779B185EBCA87)))
    (local.set $rounds (i32.shr_u (local.get $length) (i32.const 4)))
    (loop $first
      (local.set $sum (i64.add (local.get $sum) (call $mix16
        (i32.add (local.get $at) (i32.shl (local.get $round) (i32.const 4)))
        (i32.shl (local.get $round) (i32.const 4)))))
      (local.set $round (i32.add (local.get $round) (i32.const 1)))
      (br_if $first (i32.lt_u (local.get $round) (i32.const 8))))
    (local.set $sum (call $avalanche (local.get $sum)))
    (block $done (loop $further
      (br_if $done (i32.ge_u (local.get $round) (local.get $rounds)))
      (local.set $sum (i64.add (local.get $sum) (call $mix16
        (i32.add (local.get $at) (i32.shl (local.get $round) (i32.const 4)))
        (i32.sub (i32.shl (local.get $round) (i32.const 4)) (i32.const 125)))))
      (local.set $round (i32.add (local.get $round) (i32.const 1)))
      (br $further)))
    (call $avalanche (i64.add (local.get $sum) (call $mix16
      (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 16))
      (i32.const 119)))))

  ;; ------------------------------------------------------------------ XXH3: more than 240 bytes

  ;; Eight 64-bit accumulators in $a0..$a3. The data itself is added to the neighbour's accumulator; that it is
  ;; collected in $d0..$d3 and swapped over once per 1024 bytes instead of once per 16 saves a shuffle in four.
  (func $hash241up (param $at i32) (param $length i32) (result i64)
    (local $a0 v128) (local $a1 v128) (local $a2 v128) (local $a3 v128)
    (local $d0 v128) (local $d1 v128) (local $d2 v128) (local $d3 v128)
    (local $x v128) (local $y v128) (local $even v128) (local $odd v128)
    (local $key i32) (local $stripes i32) (local $final i32) (local $sum i64)
    (local.set $a0 (v128.const i64x2 0x00000000C2B2AE3D 0x9E3779B185EBCA87))
    (local.set $a1 (v128.const i64x2 0xC2B2AE3D27D4EB4F 0x165667B19E3779F9))
    (local.set $a2 (v128.const i64x2 0x85EBCA77C2B2AE63 0x0000000085EBCA77))
    (local.set $a3 (v128.const i64x2 0x27D4EB2F165667C5 0x000000009E3779B1))
    (local.set $stripes (i32.shr_u (i32.sub (local.get $length) (i32.const 1)) (i32.const 6)))
    (local.set $final (i32.sub (i32.add (local.get $at) (local.get $length)) (i32.const 64)))

    (loop $stripe
      (local.set $x (v128.load (local.get $at)))
      (local.set $y (v128.load offset=16 (local.get $at)))
      (local.set $d0 (i64x2.add (local.get $d0) (local.get $x)))
      (local.set $d1 (i64x2.add (local.get $d1) (local.get $y)))
      (local.set $x (v128.xor (local.get $x) (v128.load (local.get $key))))
      (local.set $y (v128.xor (local.get $y) (v128.load offset=16 (local.get $key))))
      (local.set $even (i8x16.shuffle 0 1 2 3 8 9 10 11 16 17 18 19 24 25 26 27 (local.get $x) (local.get $y)))
      (local.set $odd (i8x16.shuffle 4 5 6 7 12 13 14 15 20 21 22 23 28 29 30 31 (local.get $x) (local.get $y)))
      (local.set $a0 (i64x2.add (local.get $a0) (i64x2.extmul_low_i32x4_u (local.get $even) (local.get $odd))))
      (local.set $a1 (i64x2.add (local.get $a1) (i64x2.extmul_high_i32x4_u (local.get $even) (local.get $odd))))

      (local.set $x (v128.load offset=32 (local.get $at)))
      (local.set $y (v128.load offset=48 (local.get $at)))
      (local.set $d2 (i64x2.add (local.get $d2) (local.get $x)))
      (local.set $d3 (i64x2.add (local.get $d3) (local.get $y)))
      (local.set $x (v128.xor (local.get $x) (v128.load offset=32 (local.get $key))))
      (local.set $y (v128.xor (local.get $y) (v128.load offset=48 (local.get $key))))
      (local.set $even (i8x16.shuffle 0 1 2 3 8 9 10 11 16 17 18 19 24 25 26 27 (local.get $x) (local.get $y)))
      (local.set $odd (i8x16.shuffle 4 5 6 7 12 13 14 15 20 21 22 23 28 29 30 31 (local.get $x) (local.get $y)))
      (local.set $a2 (i64x2.add (local.get $a2) (i64x2.extmul_low_i32x4_u (local.get $even) (local.get $odd))))
      (local.set $a3 (i64x2.add (local.get $a3) (i64x2.extmul_high_i32x4_u (local.get $even) (local.get $odd))))

      (local.set $key (i32.add (local.get $key) (i32.const 8)))
      (if (i32.eq (local.get $key) (i32.const 128)) (then
        (local.set $key (i32.const 0))
        (local.set $a0 (call $scramble (local.get $a0) (local.get $d0) (i32.const 128)))
        (local.set $a1 (call $scramble (local.get $a1) (local.get $d1) (i32.const 144)))
        (local.set $a2 (call $scramble (local.get $a2) (local.get $d2) (i32.const 160)))
        (local.set $a3 (call $scramble (local.get $a3) (local.get $d3) (i32.const 176)))
        (local.set $d0 (v128.const i64x2 0 0))
        (local.set $d1 (v128.const i64x2 0 0))
        (local.set $d2 (v128.const i64x2 0 0))
        (local.set $d3 (v128.const i64x2 0 0))))
      (local.set $at (i32.add (local.get $at) (i32.const 64)))
      (local.set $stripes (i32.sub (local.get $stripes) (i32.const 1)))
      (br_if $stripe (local.get $stripes)))

    ;; The final stripe is the last 64 bytes, whatever of them has been seen before, with a key of its own.
    (local.set $x (v128.load (local.get $final)))
    (local.set $d0 (i64x2.add (local.get $d0) (local.get $x)))
    (local.set $a0 (i64x2.add (local.get $a0) (call $product (v128.xor (local.get $x) (v128.load (i32.const 121))))))
    (local.set $x (v128.load offset=16 (local.get $final)))
    (local.set $d1 (i64x2.add (local.get $d1) (local.get $x)))
    (local.set $a1 (i64x2.add (local.get $a1) (call $product (v128.xor (local.get $x) (v128.load (i32.const 137))))))
    (local.set $x (v128.load offset=32 (local.get $final)))
    (local.set $d2 (i64x2.add (local.get $d2) (local.get $x)))
    (local.set $a2 (i64x2.add (local.get $a2) (call $product (v128.xor (local.get $x) (v128.load (i32.const 153))))))
    (local.set $x (v128.load offset=48 (local.get $final)))
    (local.set $d3 (i64x2.add (local.get $d3) (local.get $x)))
    (local.set $a3 (i64x2.add (local.get $a3) (call $product (v128.xor (local.get $x) (v128.load (i32.const 169))))))

    (local.set $sum (i64.mul (i64.extend_i32_u (local.get $length)) (i64.const 0x9E3779B185EBCA87)))
    (local.set $sum (i64.add (local.get $sum) (call $merge (local.get $a0) (local.get $d0) (i32.const 11))))
    (local.set $sum (i64.add (local.get $sum) (call $merge (local.get $a1) (local.get $d1) (i32.const 27))))
    (local.set $sum (i64.add (local.get $sum) (call $merge (local.get $a2) (local.get $d2) (i32.const 43))))
    (local.set $sum (i64.add (local.get $sum) (call $merge (local.get $a3) (local.get $d3) (i32.const 59))))
    (call $avalanche (local.get $sum)))

  (func $product (param $x v128) (result v128)
    (i64x2.extmul_low_i32x4_u
      (i8x16.shuffle 0 1 2 3 8 9 10 11 0 1 2 3 8 9 10 11 (local.get $x) (local.get $x))
      (i8x16.shuffle 4 5 6 7 12 13 14 15 4 5 6 7 12 13 14 15 (local.get $x) (local.get $x))))

  (func $joined (param $a v128) (param $d v128) (result v128)
    (i64x2.add (local.get $a)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $d) (local.get $d))))

  (func $scramble (param $a v128) (param $d v128) (param $key i32) (result v128)
    (local.set $a (call $joined (local.get $a) (local.get $d)))
    (i64x2.mul
      (v128.xor
        (v128.xor (local.get $a) (i64x2.shr_u (local.get $a) (i32.const 47)))
        (v128.load (local.get $key)))
      (v128.const i64x2 0x9E3779B1 0x9E3779B1)))

  (func $merge (param $a v128) (param $d v128) (param $key i32) (result i64)
    (local.set $a (v128.xor (call $joined (local.get $a) (local.get $d)) (v128.load (local.get $key))))
    (call $fold (i64x2.extract_lane 0 (local.get $a)) (i64x2.extract_lane 1 (local.get $a))))

  ;; ------------------------------------------------------------------ XXH3: what is called

  (func $hash64 (export "hash64") (param $at i32) (param $length i32) (result i64)
    (if (i32.gt_u (local.get $length) (i32.const 240))
      (then (return (call $hash241up (local.get $at) (local.get $length)))))
    (if (i32.gt_u (local.get $length) (i32.const 128))
      (then (return (call $hash129to240 (local.get $at) (local.get $length)))))
    (if (i32.gt_u (local.get $length) (i32.const 16))
      (then (return (call $hash17to128 (local.get $at) (local.get $length)))))
    (call $hash0to16 (local.get $at) (local.get $length)))

  (func (export "hash") (param $at i32) (param $length i32) (result i32)
    (i32.wrap_i64 (call $hash64 (local.get $at) (local.get $length))))

  ;; ------------------------------------------------------------------ CRC32C

  ;; Runs of 1 KiB and more are folded first, which is four to six times as fast as tables. The polynomial P divides
  ;; M = y^266 + y^143 + y^121 + y^88 + y^71 + 1, thus also M with x^16 for y (squaring gives P(x)^2 = P(x^2)): a word
  ;; of 16 bits may be moved to the places 123, 145, 178, 195 and 266 words behind it without changing the remainder.
  ;; Each word gathers what comes from those places before it, eight words at a time, until 544 bytes are left.
  (func $folded (param $at i32) (param $length i32) (param $crc i32) (result i32)
    (local $head i32) (local $left i32) (local $count i32) (local $from i32) (local $end i32)
    ;; What is no multiple of 16 goes first.
    (local.set $head (i32.and (local.get $length) (i32.const 15)))
    (local.set $crc (call $byTables (local.get $at) (local.get $head) (local.get $crc)))
    (local.set $at (i32.add (local.get $at) (local.get $head)))
    (local.set $left (i32.sub (i32.sub (local.get $length) (local.get $head)) (i32.const 544)))
    (memory.fill (i32.const 20480) (i32.const 0) (i32.const 544))
    ;; Only the first word looks 532 bytes back: so the sum so far is added to the first bytes.
    (i32.store (i32.const 20492) (local.get $crc))
    ;; Both loops below: eight words with what comes to them from before; $from lies 532 bytes before theirs.
    (loop $block
      (local.set $count (select (local.get $left) (i32.const 4096) (i32.lt_u (local.get $left) (i32.const 4096))))
      (local.set $from (i32.const 20492))
      (local.set $end (i32.add (local.get $from) (local.get $count)))
      (loop $each
        (v128.store offset=532 (local.get $from) (v128.xor
          (v128.xor
            (v128.xor (v128.load (local.get $at)) (v128.load (local.get $from)))
            (v128.xor (v128.load offset=142 (local.get $from)) (v128.load offset=176 (local.get $from))))
          (v128.xor (v128.load offset=242 (local.get $from)) (v128.load offset=286 (local.get $from)))))
        (local.set $at (i32.add (local.get $at) (i32.const 16)))
        (local.set $from (i32.add (local.get $from) (i32.const 16)))
        (br_if $each (i32.lt_u (local.get $from) (local.get $end))))
      (local.set $left (i32.sub (local.get $left) (local.get $count)))
      (if (local.get $left) (then
        (memory.copy (i32.const 20480) (i32.const 24576) (i32.const 544))
        (br $block))))
    (memory.copy (i32.const 25600) (i32.add (i32.const 20480) (local.get $count)) (i32.const 544))
    (local.set $from (i32.const 25612))
    (loop $rest
      (v128.store offset=1524 (local.get $from) (v128.xor
        (v128.xor
          (v128.xor (v128.load (local.get $at)) (v128.load (local.get $from)))
          (v128.xor (v128.load offset=142 (local.get $from)) (v128.load offset=176 (local.get $from))))
        (v128.xor (v128.load offset=242 (local.get $from)) (v128.load offset=286 (local.get $from)))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (local.set $from (i32.add (local.get $from) (i32.const 16)))
      (br_if $rest (i32.lt_u (local.get $from) (i32.const 26156))))
    (call $byTables (i32.const 27136) (i32.const 544) (i32.const 0)))

  ;; Runs of 16 KiB and more are folded in another way before: M = y^5275 + y^4508 + y^2751 + 1 with y = x^8, the shortest
  ;; multiple of P with four terms. Each byte gathers what comes from the places 767, 2524 and 5275 before it, until 5312
  ;; bytes are left; those are folded as a shorter run. It takes less than two thirds of the loads.
  (func (export "crc32c") (param $at i32) (param $length i32) (param $crc i32) (result i32)
    (local $head i32) (local $left i32) (local $count i32) (local $from i32) (local $to i32) (local $end i32)
    (local.set $crc (i32.xor (local.get $crc) (i32.const -1)))
    (if (i32.lt_u (local.get $length) (i32.const 1024)) (then
      (return (i32.xor (call $byTables (local.get $at) (local.get $length) (local.get $crc)) (i32.const -1)))))
    (if (i32.lt_u (local.get $length) (i32.const 16384)) (then
      (return (i32.xor (call $folded (local.get $at) (local.get $length) (local.get $crc)) (i32.const -1)))))
    ;; What is no multiple of 64 (as 5312 is) goes first.
    (local.set $head (i32.and (local.get $length) (i32.const 63)))
    (local.set $crc (call $byTables (local.get $at) (local.get $head) (local.get $crc)))
    (local.set $at (i32.add (local.get $at) (local.get $head)))
    (local.set $left (i32.sub (i32.sub (local.get $length) (local.get $head)) (i32.const 5312)))
    (memory.fill (i32.const 40960) (i32.const 0) (i32.const 5280))
    ;; Only the first byte looks 5275 bytes back: so the sum so far is added to the first bytes.
    (i32.store (i32.const 40965) (local.get $crc))
    (loop $block
      (local.set $count (select (local.get $left) (i32.const 65536) (i32.lt_u (local.get $left) (i32.const 65536))))
      (local.set $from (i32.const 40965))
      (local.set $to (i32.const 46240))
      (local.set $end (i32.add (local.get $to) (local.get $count)))
      (loop $each
        (v128.store (local.get $to) (v128.xor
          (v128.xor (v128.load (local.get $at)) (v128.load (local.get $from)))
          (v128.xor (v128.load offset=2751 (local.get $from)) (v128.load offset=4508 (local.get $from)))))
        (v128.store offset=16 (local.get $to) (v128.xor
          (v128.xor (v128.load offset=16 (local.get $at)) (v128.load offset=16 (local.get $from)))
          (v128.xor (v128.load offset=2767 (local.get $from)) (v128.load offset=4524 (local.get $from)))))
        (local.set $at (i32.add (local.get $at) (i32.const 32)))
        (local.set $from (i32.add (local.get $from) (i32.const 32)))
        (local.set $to (i32.add (local.get $to) (i32.const 32)))
        (br_if $each (i32.lt_u (local.get $to) (local.get $end))))
      (local.set $left (i32.sub (local.get $left) (local.get $count)))
      (if (local.get $left) (then
        (memory.copy (i32.const 40960) (i32.sub (local.get $end) (i32.const 5280)) (i32.const 5280))
        (br $block))))
    ;; Behind the folded bytes come zeroes: what is left is not moved any more.
    (memory.fill (local.get $to) (i32.const 0) (i32.const 5312))
    (local.set $to (i32.const 32768))
    (loop $rest
      (v128.store (local.get $to) (v128.xor
        (v128.xor (v128.load (local.get $at)) (v128.load (local.get $from)))
        (v128.xor (v128.load offset=2751 (local.get $from)) (v128.load offset=4508 (local.get $from)))))
      (v128.store offset=16 (local.get $to) (v128.xor
        (v128.xor (v128.load offset=16 (local.get $at)) (v128.load offset=16 (local.get $from)))
        (v128.xor (v128.load offset=2767 (local.get $from)) (v128.load offset=4524 (local.get $from)))))
      (local.set $at (i32.add (local.get $at) (i32.const 32)))
      (local.set $from (i32.add (local.get $from) (i32.const 32)))
      (local.set $to (i32.add (local.get $to) (i32.const 32)))
      (br_if $rest (i32.lt_u (local.get $to) (i32.const 38080))))
    (i32.xor (call $folded (i32.const 32768) (i32.const 5312) (i32.const 0)) (i32.const -1)))

  ;; Entry of table $n at byte $byte (0 to 255) of the word: 4096 + 1024 * n + 4 * byte. The sum before it is complemented.
  (func $byTables (param $at i32) (param $length i32) (param $crc i32) (result i32)
    (local $lo i64) (local $hi i64) (local $low i32) (local $high i32)
    (block $tail (loop $sixteen
      (br_if $tail (i32.lt_u (local.get $length) (i32.const 16)))
      (local.set $lo (i64.xor (i64.load (local.get $at)) (i64.extend_i32_u (local.get $crc))))
      (local.set $hi (i64.load offset=8 (local.get $at)))
      (local.set $low (i32.wrap_i64 (local.get $lo)))
      (local.set $high (i32.wrap_i64 (i64.shr_u (local.get $lo) (i64.const 32))))
      (local.set $crc (i32.xor
        (i32.xor
          (i32.xor
            (i32.load offset=19456 (i32.shl (i32.and (local.get $low) (i32.const 255)) (i32.const 2)))
            (i32.load offset=18432 (i32.and (i32.shr_u (local.get $low) (i32.const 6)) (i32.const 1020))))
          (i32.xor
            (i32.load offset=17408 (i32.and (i32.shr_u (local.get $low) (i32.const 14)) (i32.const 1020)))
            (i32.load offset=16384 (i32.and (i32.shr_u (local.get $low) (i32.const 22)) (i32.const 1020)))))
        (i32.xor
          (i32.xor
            (i32.load offset=15360 (i32.shl (i32.and (local.get $high) (i32.const 255)) (i32.const 2)))
            (i32.load offset=14336 (i32.and (i32.shr_u (local.get $high) (i32.const 6)) (i32.const 1020))))
          (i32.xor
            (i32.load offset=13312 (i32.and (i32.shr_u (local.get $high) (i32.const 14)) (i32.const 1020)))
            (i32.load offset=12288 (i32.and (i32.shr_u (local.get $high) (i32.const 22)) (i32.const 1020)))))))
      (local.set $low (i32.wrap_i64 (local.get $hi)))
      (local.set $high (i32.wrap_i64 (i64.shr_u (local.get $hi) (i64.const 32))))
      (local.set $crc (i32.xor (local.get $crc) (i32.xor
        (i32.xor
          (i32.xor
            (i32.load offset=11264 (i32.shl (i32.and (local.get $low) (i32.const 255)) (i32.const 2)))
            (i32.load offset=10240 (i32.and (i32.shr_u (local.get $low) (i32.const 6)) (i32.const 1020))))
          (i32.xor
            (i32.load offset=9216 (i32.and (i32.shr_u (local.get $low) (i32.const 14)) (i32.const 1020)))
            (i32.load offset=8192 (i32.and (i32.shr_u (local.get $low) (i32.const 22)) (i32.const 1020)))))
        (i32.xor
          (i32.xor
            (i32.load offset=7168 (i32.shl (i32.and (local.get $high) (i32.const 255)) (i32.const 2)))
            (i32.load offset=6144 (i32.and (i32.shr_u (local.get $high) (i32.const 6)) (i32.const 1020))))
          (i32.xor
            (i32.load offset=5120 (i32.and (i32.shr_u (local.get $high) (i32.const 14)) (i32.const 1020)))
            (i32.load offset=4096 (i32.and (i32.shr_u (local.get $high) (i32.const 22)) (i32.const 1020))))))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (local.set $length (i32.sub (local.get $length) (i32.const 16)))
      (br $sixteen)))
    (block $done (loop $one
      (br_if $done (i32.eqz (local.get $length)))
      (local.set $crc (i32.xor
        (i32.load offset=4096 (i32.shl
          (i32.and (i32.xor (local.get $crc) (i32.load8_u (local.get $at))) (i32.const 255))
          (i32.const 2)))
        (i32.shr_u (local.get $crc) (i32.const 8))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (local.set $length (i32.sub (local.get $length) (i32.const 1)))
      (br $one)))
    (local.get $crc)))
