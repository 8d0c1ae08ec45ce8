//! Any bytes are an AMX instruction or not; one that is has the same meaning whatever follows it, and leaves tiles that are zero beyond
//! their shapes.
#![no_main]

use deepfuse_emulate::amx::{Config, MAX_LENGTH, Machine, Reason, Rejected, Segment, Tiles, decode};

/// 16 registers and a little memory around the addresses that they hold.
struct Small {
    registers: [u64; 16],
    memory: [u8; 4096],
}

impl Small {
    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Reason> {
        let start = usize::try_from(address).ok().filter(|a| a.saturating_add(length) <= self.memory.len());
        start.map(|a| a..a + length).ok_or(Reason::Memory(address))
    }
}

impl Machine for Small {
    fn register(&self, number: u8) -> u64 {
        self.registers[usize::from(number)]
    }

    fn segment(&self, _: Segment) -> u64 {
        7
    }

    fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), Reason> {
        to.copy_from_slice(&self.memory[self.range(address, to.len())?]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Reason> {
        let range = self.range(address, from.len())?;
        self.memory[range].copy_from_slice(from);
        Ok(())
    }
}

fn alone(bytes: &[u8]) {
    let Ok(d) = decode(bytes) else { return };
    assert!(d.length <= MAX_LENGTH && d.length <= bytes.len());
    assert_eq!(decode(&bytes[..d.length]), Ok(d));
    for n in 0..d.length {
        assert_eq!(decode(&bytes[..n]), Err(Rejected::Truncated));
    }
}

libfuzzer_sys::fuzz_target!(|input: (u8, [u16; 16], [u8; 64], Vec<u8>)| {
    let (fill, registers, mut config, code) = input;
    let mut machine = Small { registers: registers.map(|r| u64::from(r % 5000)), memory: [fill; 4096] };
    // Most random configurations are refused: make the palette and the reserved bytes right.
    config[0] &= 1;
    for byte in (2..16).chain(32..48).chain(56..64) {
        config[byte] = 0;
    }
    let mut tiles = Tiles::NEW;
    if let Ok(config) = Config::parse(&config) {
        assert_eq!(Config::parse(&config.bytes()), Ok(config));
        tiles.config = config;
    }
    let mut rest = &code[..];
    while !rest.is_empty() {
        alone(rest);
        let Ok(d) = decode(rest) else {
            rest = &rest[1..];
            continue;
        };
        rest = &rest[d.length..];
        let before = tiles.clone();
        match tiles.execute(&d.instruction, 100, &mut machine) {
            Err(Reason::Memory(_)) | Ok(()) => {}
            Err(reason) => assert!(tiles == before, "{reason} changed something"),
        }
        for (t, shape) in tiles.config.tiles.iter().enumerate() {
            for r in 0..16 {
                let inside = if r < usize::from(shape.rows) { usize::from(shape.bytes) } else { 0 };
                assert!(tiles.row(t, r)[inside..].iter().all(|b| *b == 0), "tile {t}, row {r}");
            }
        }
    }
});
