// Tracks in, camera poses out: poses WEIGHTS TRACKS.npy FOCAL WIDTH HEIGHT
// TRACKS.npy: float32 (T, N, 3): x, y in pixels, and 1 where the point is seen, else 0.
use std::os::raw::{c_char, c_int, c_void};
use std::{env, ffi::{CStr, CString}, fs, ptr};

#[repr(C)]
struct Outputs {
    rotation: *mut f32,
    position: *mut f32,
    others: [*mut f32; 7], // focal, coefficients, basis, motion, points, points_camera, projection
}

#[link(name = "fasttracks")]
extern "C" {
    fn ft_last_error() -> *const c_char;
    fn ft_create(weights: *const c_char, device: c_int, clips: c_int, frames: c_int,
                 tracks: c_int, engine: *mut *mut c_void) -> c_int;
    fn ft_run_host(engine: *mut c_void, pixels: *const f32, seen: *const u8,
                   intrinsics: *const f64, per_frame: c_int, frames: c_int, tracks: c_int,
                   outputs: *const Outputs) -> c_int;
    fn ft_destroy(engine: *mut c_void);
}

fn check(status: c_int) {
    if status != 0 {
        let text = unsafe { CStr::from_ptr(ft_last_error()) };
        panic!("status {status}: {}", text.to_string_lossy());
    }
}

fn main() {
    let words: Vec<String> = env::args().collect();
    let file = fs::read(&words[2]).expect("tracks");
    let end = file.iter().position(|&byte| byte == b'\n').expect("a .npy file") + 1;
    let header = String::from_utf8_lossy(&file[..end]).into_owned();
    let shape = header.split("'shape': (").nth(1).expect("a shape");
    let sizes: Vec<usize> = shape.split([',', ')']).take(2).map(|n| n.trim().parse().unwrap()).collect();
    let (frames, tracks) = (sizes[0], sizes[1]);
    let values: Vec<f32> =
        file[end..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(header.contains("'<f4'") && values.len() == 3 * frames * tracks);
    let pixels: Vec<f32> = values.chunks(3).flat_map(|v| [v[0], v[1]]).collect();
    let seen: Vec<u8> = values.chunks(3).map(|v| (v[2] > 0.0) as u8).collect();
    let n = |i: usize| words[i].parse::<f64>().expect("a number");
    let camera = [n(3), 0.0, (n(4) - 1.0) / 2.0, 0.0, n(3), (n(5) - 1.0) / 2.0, 0.0, 0.0, 1.0];

    let (mut rotation, mut position) = (vec![0f32; 9 * frames], vec![0f32; 3 * frames]);
    let outputs = Outputs { rotation: rotation.as_mut_ptr(), position: position.as_mut_ptr(), others: [ptr::null_mut(); 7] };
    let (path, mut engine) = (CString::new(words[1].as_str()).unwrap(), ptr::null_mut());
    let (t, count) = (frames as c_int, tracks as c_int);
    unsafe {
        check(ft_create(path.as_ptr(), 0, 1, t, count, &mut engine));
        check(ft_run_host(engine, pixels.as_ptr(), seen.as_ptr(), camera.as_ptr(), 0, t, count, &outputs));
        ft_destroy(engine);
    }
    for (frame, p) in position.chunks(3).enumerate() {
        println!("{frame} {} {} {}", p[0], p[1], p[2]);
    }
}
