//! Pieces of HTML that every part of the page is made of.

/// Text for HTML, also inside of attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A picture of PNG in base64.
pub fn picture(png: &str, what: &str) -> String {
    let what = escape(what);
    format!("<img alt=\"{what}\" title=\"{what}\" src=\"data:image/png;base64,{}\">", escape(png))
}

/// A picture with a caption, both as HTML.
pub fn figure(caption: &str, svg: &str) -> String {
    format!("<figure>{svg}<figcaption>{caption}</figcaption></figure>\n")
}
