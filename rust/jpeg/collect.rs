//! Files of several scans: all coefficients are collected before the first row comes out.

use super::MAX_SCANS;
use super::frame::{Frame, Scan};
use super::huffman::Cache;
use super::markers::{Markers, Reader, Stop, broken};
use super::progressive::{self, Known, Pass};
use super::scans::{Arena, Findings, Output, huffman_table, latch_quantisation, parts};
use super::sequential::{CHUNK, Coefficients, Restarts, Sequence};
use super::simd_face::Simd;
use super::smooth::Smoothing;
use super::stream::Stream;
use crate::Error;

/// Decode all scans of a file, then its rows.
pub(super) fn decode(
    arena: &mut Arena,
    frame: &Frame,
    mut scan: Scan,
    mut markers: Markers,
    mut reader: Reader<'_>,
    output: &mut Output<'_>,
) -> Result<Findings, Error> {
    arena.coefficients.truncate(frame.components.len());
    arena
        .coefficients
        .resize_with(frame.components.len(), Coefficients::default);
    for (target, component) in arena.coefficients.iter_mut().zip(&frame.components) {
        target.reset(
            frame.mcus_wide * component.h,
            frame.mcus_high * component.v,
            frame.is_progressive,
        )?;
    }
    let mut findings = Findings::default();
    let mut known = vec![Known::default(); frame.components.len()];
    let (mut last_good_row, mut scans) = (0, 1);
    loop {
        latch_quantisation(&mut arena.rows, frame, &scan, &markers)?;
        let mut stream = Stream::new(reader, &mut arena.window);
        let coefficients = &mut arena.coefficients;
        if frame.is_progressive {
            let mut pass = prepare(&mut arena.tables, frame, &scan, &markers)?;
            for part in &scan.components {
                if let Some(known) = known.get_mut(part.index)
                    && !known.note(&scan, scans == 1)
                {
                    findings.add("progressive scans out of order");
                }
            }
            last_good_row = progressive_scan(
                frame,
                &mut pass,
                &mut stream,
                coefficients,
                last_good_row,
                arena.rows.simd,
            )?;
        } else {
            let parts = parts(&mut arena.tables, frame, &scan, &markers)?;
            let mut run = Sequence::new(parts, markers.restart_interval);
            let (wide, high) = mcus(frame, &scan);
            for row in 0..high {
                for first in (0..wide).step_by(CHUNK) {
                    run.begin(&mut arena.chunk, CHUNK.min(wide - first));
                    run.decode(&mut stream, &mut arena.chunk, arena.rows.simd);
                    run.put(&arena.chunk, coefficients, row, first);
                }
            }
        }
        let (next, marker, damage) = stream.finish();
        findings.add_damage(damage);
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
        findings.add("the end marker is missing");
    }
    let quantisation: Vec<_> = (0..frame.components.len())
        .map(|index| arena.rows.quantisation(index))
        .collect();
    if quantisation.contains(&None) {
        findings.add("a component without a scan");
    }
    let smoothing = Smoothing::new(&known, &quantisation, scans, last_good_row);
    let smoothing = smoothing.filter(|_| frame.is_progressive);
    emit(arena, frame, smoothing.as_ref(), output);
    arena
        .coefficients
        .iter_mut()
        .for_each(Coefficients::release);
    Ok(findings)
}

/// MCUs of a scan, in a row and in a column. One component alone has no padding.
fn mcus(frame: &Frame, scan: &Scan) -> (usize, usize) {
    match scan.components.as_slice() {
        [part] => frame
            .components
            .get(part.index)
            .map_or((0, 0), |component| {
                (component.blocks_wide, component.blocks_high)
            }),
        _ => (frame.mcus_wide, frame.mcus_high),
    }
}

/// Check a progressive scan and find its tables.
fn prepare<'s>(
    tables: &mut Cache,
    frame: &Frame,
    scan: &'s Scan,
    markers: &Markers,
) -> Result<Pass<'s>, Error> {
    frame.check_scan(scan)?;
    progressive::check(scan)?;
    let mut parts = Vec::with_capacity(scan.components.len());
    for part in &scan.components {
        let Some(component) = frame.components.get(part.index) else {
            continue;
        };
        let table = match (scan.start, scan.high) {
            (0, 0) => Some(tables.table(huffman_table(&markers.dc, part.dc)?, true)?),
            (0, _) => None,
            _ => Some(tables.table(huffman_table(&markers.ac, part.ac)?, false)?),
        };
        let is_alone = scan.components.len() == 1;
        parts.push(progressive::Part {
            index: part.index,
            h: if is_alone { 1 } else { component.h },
            v: if is_alone { 1 } else { component.v },
            table,
            prediction: 0,
        });
    }
    Ok(Pass {
        scan,
        parts,
        restarts: Restarts::new(markers.restart_interval),
        end_of_band: 0,
    })
}

/// Decode a progressive scan. Returns the last row of MCUs of the frame that had data.
fn progressive_scan(
    frame: &Frame,
    pass: &mut Pass<'_>,
    stream: &mut Stream<'_, '_>,
    coefficients: &mut [Coefficients],
    mut last_good_row: usize,
    simd: Simd,
) -> Result<usize, Error> {
    let (wide, high) = mcus(frame, pass.scan);
    let rows_per_mcu = match pass.scan.components.as_slice() {
        [part] => frame
            .components
            .get(part.index)
            .map_or(1, |component| component.v),
        _ => 1,
    };
    for row in 0..high {
        if pass.row(stream, coefficients, row, wide, simd)? {
            last_good_row = row / rows_per_mcu;
        }
    }
    Ok(last_good_row)
}

/// Hand on the rows of coefficients that are all there.
fn emit(arena: &mut Arena, frame: &Frame, smoothing: Option<&Smoothing>, output: &mut Output<'_>) {
    for mcu_row in 0..frame.mcus_high {
        for (index, (component, from)) in
            frame.components.iter().zip(&arena.coefficients).enumerate()
        {
            let first = mcu_row * component.v;
            let last = (first + component.v).min(component.blocks_high);
            for row in first..last {
                let table = arena.rows.quantisation(index);
                if let (Some(smoothing), Some(table)) = (smoothing, table) {
                    smoothing.row(frame, index, row, from, &table, &mut arena.smooth);
                    let blocks = arena.smooth.iter();
                    arena.rows.transform(index, row - first, 0, blocks);
                } else {
                    let blocks = from.row(row, component.blocks_wide).iter();
                    arena.rows.transform(index, row - first, 0, blocks);
                }
            }
        }
        if output.emit(&mut arena.rows, mcu_row) {
            return;
        }
    }
}
