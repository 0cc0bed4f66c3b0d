//! Multi-scan files, whose coefficients are all collected before the first row is emitted.

use super::bitstream::{Bitstream, Restarts};
use super::block::Coefficients;
use super::block_smoothing::Smoothing;
use super::errors::broken;
use super::frame::{Component, Frame, Scan};
use super::huffman::TableCache;
use super::markers::{Markers, Reader, Stop, table};
use super::progressive::{self, KnownBits, ScanPass};
use super::sequential::{self, CHUNK, Sequence};
use super::simd::Simd;
use super::state::{DecodeWarnings, DecoderState, Output, latch_quantization};
use crate::Error;

/// Maximum number of scans. Regular progressive files have about ten; libjpeg-turbo itself has no
/// limit, but its fuzzers use this one.
const MAX_SCANS: usize = 500;

/// Bytes of the coefficients of all components.
pub(super) fn coefficient_bytes(frame: &Frame) -> usize {
    let components = frame.components.iter();
    let blocks: usize = components
        .map(|it| it.h * it.v * frame.mcus_wide * frame.mcus_high)
        .sum();
    blocks * Coefficients::bytes_per_block(frame.is_progressive)
}

/// Decode all scans of a file, then emit its rows.
pub(super) fn decode(
    state: &mut DecoderState,
    frame: &Frame,
    mut scan: Scan,
    mut markers: Markers,
    mut reader: Reader<'_>,
    output: &mut Output<'_>,
) -> Result<DecodeWarnings, Error> {
    let all = &mut state.coefficients;
    all.truncate(frame.components.len());
    all.resize_with(frame.components.len(), Coefficients::default);
    for (target, component) in state.coefficients.iter_mut().zip(&frame.components) {
        target.reset(
            frame.mcus_wide * component.h,
            frame.mcus_high * component.v,
            frame.is_progressive,
        )?;
    }
    let mut warnings = DecodeWarnings::default();
    let mut known = vec![KnownBits::default(); frame.components.len()];
    let (mut last_good_row, mut scans) = (0, 1);
    loop {
        latch_quantization(&mut state.rows, frame, &scan, &markers)?;
        let mut stream = Bitstream::new(reader, &mut state.window);
        let coefficients = &mut state.coefficients;
        if frame.is_progressive {
            let mut pass = prepare(&mut state.tables, frame, &scan, &markers)?;
            for part in &scan.components {
                if let Some(known) = known.get_mut(part.index)
                    && !known.note(&scan, scans == 1)
                {
                    warnings.add("progressive scans out of order");
                }
            }
            last_good_row = progressive_scan(
                frame,
                &mut pass,
                &mut stream,
                coefficients,
                last_good_row,
                state.rows.simd,
            )?;
        } else {
            let parts = sequential::parts(&mut state.tables, frame, &scan, &markers)?;
            let mut run = Sequence::new(parts, markers.restart_interval);
            let (wide, high) = mcus(frame, &scan);
            for row in 0..high {
                for first in (0..wide).step_by(CHUNK) {
                    run.begin(&mut state.chunk, CHUNK.min(wide - first));
                    run.decode(&mut stream, &mut state.chunk, state.rows.simd);
                    run.put(&state.chunk, coefficients, row, first);
                }
            }
        }
        let (next, marker, damage) = stream.finish();
        warnings.add_damage(damage);
        reader = next;
        match markers.read_to_scan(&mut reader, Some(marker))? {
            Stop::End => break,
            Stop::Scan(next) => scan = next,
        }
        scans += 1;
        if scans > MAX_SCANS {
            return Err(broken(format!("more than {MAX_SCANS} scans")));
        }
    }
    if reader.is_past_end() {
        warnings.add("the end marker is missing");
    }
    let quantization: Vec<_> = (0..frame.components.len())
        .map(|index| state.rows.quantization(index))
        .collect();
    if quantization.contains(&None) {
        warnings.add("component without a scan");
    }
    let smoothing = Smoothing::new(&known, &quantization, scans, last_good_row);
    let smoothing = smoothing.filter(|_| frame.is_progressive);
    emit(state, frame, smoothing.as_ref(), output);
    let coefficients = state.coefficients.iter_mut();
    coefficients.for_each(Coefficients::release);
    Ok(warnings)
}

/// The component of a single-component scan.
fn only_component<'f>(frame: &'f Frame, scan: &Scan) -> Option<&'f Component> {
    match scan.components.as_slice() {
        [part] => frame.components.get(part.index),
        _ => None,
    }
}

/// Size of a scan in MCUs (columns, rows). A single-component scan has no padding.
fn mcus(frame: &Frame, scan: &Scan) -> (usize, usize) {
    let only = only_component(frame, scan);
    let all = (frame.mcus_wide, frame.mcus_high);
    only.map_or(all, |component| {
        (component.blocks_wide, component.blocks_high)
    })
}

/// Check a progressive scan and look up its tables.
fn prepare<'s>(
    tables: &mut TableCache,
    frame: &Frame,
    scan: &'s Scan,
    markers: &Markers,
) -> Result<ScanPass<'s>, Error> {
    frame.check_scan(scan)?;
    progressive::check(scan)?;
    let mut parts = Vec::with_capacity(scan.components.len());
    for part in &scan.components {
        let Some(component) = frame.components.get(part.index) else {
            continue;
        };
        let table = match (scan.start, scan.high) {
            (0, 0) => Some(tables.table(table("Huffman", &markers.dc, part.dc)?, true)?),
            (0, _) => None,
            _ => Some(tables.table(table("Huffman", &markers.ac, part.ac)?, false)?),
        };
        let is_alone = scan.components.len() == 1;
        parts.push(progressive::ScanBand {
            index: part.index,
            h: if is_alone { 1 } else { component.h },
            v: if is_alone { 1 } else { component.v },
            table,
            prediction: 0,
        });
    }
    Ok(ScanPass {
        scan,
        parts,
        restarts: Restarts::new(markers.restart_interval),
        end_of_band: 0,
    })
}

/// Decode a progressive scan. Returns the last MCU row of the frame with data.
fn progressive_scan(
    frame: &Frame,
    pass: &mut ScanPass<'_>,
    stream: &mut Bitstream<'_, '_>,
    coefficients: &mut [Coefficients],
    mut last_good_row: usize,
    simd: Simd,
) -> Result<usize, Error> {
    let (wide, high) = mcus(frame, pass.scan);
    let rows_per_mcu = only_component(frame, pass.scan).map_or(1, |component| component.v);
    for row in 0..high {
        if progressive_row(pass, stream, coefficients, row, wide, simd)? {
            last_good_row = row / rows_per_mcu;
        }
    }
    Ok(last_good_row)
}

/// Decode an MCU row of a progressive scan. Returns true if any of it had data.
fn progressive_row(
    pass: &mut ScanPass<'_>,
    stream: &mut Bitstream<'_, '_>,
    coefficients: &mut [Coefficients],
    row: usize,
    count: usize,
    simd: Simd,
) -> Result<bool, Error> {
    let mut had_data = false;
    let mut done = 0;
    while done < count {
        if pass.restarts.is_due() {
            stream.restart();
            pass.end_of_band = 0;
            for part in &mut pass.parts {
                part.prediction = 0;
            }
        }
        let run = pass.restarts.run(count - done);
        let end = done + run;
        while done < end && !stream.is_exhausted {
            had_data = true;
            done += simd.progressive_run(pass, stream, coefficients, row, done..end)?;
        }
        done = end;
        pass.restarts.pass(run);
    }
    Ok(had_data)
}

/// Emit rows once all coefficients are complete.
fn emit(
    state: &mut DecoderState,
    frame: &Frame,
    smoothing: Option<&Smoothing>,
    output: &mut Output<'_>,
) {
    for mcu_row in 0..frame.mcus_high {
        for (index, (component, from)) in
            frame.components.iter().zip(&state.coefficients).enumerate()
        {
            let first = mcu_row * component.v;
            let last = (first + component.v).min(component.blocks_high);
            for row in first..last {
                let table = state.rows.quantization(index);
                let blocks = if let (Some(smoothing), Some(table)) = (smoothing, table) {
                    smoothing.row(frame, index, row, from, &table, &mut state.smooth);
                    state.smooth.iter()
                } else {
                    from.row(row, component.blocks_wide).iter()
                };
                state.rows.transform(index, row - first, 0, blocks);
            }
        }
        if output.emit(&mut state.rows, mcu_row) {
            return;
        }
    }
}
