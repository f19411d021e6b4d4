<#
.SYNOPSIS
    Brings SSTP of this RRAS server to what the vpnlb nodes before it expect.

.DESCRIPTION
    Compares the values that SSTP reads when the service starts, saves the present ones in a file,
    writes what differs, restarts RemoteAccess, reads back, and fails where something still differs.
    Where nothing differs it changes nothing and restarts nothing.

    RESTARTING RemoteAccess ENDS ALL TUNNELS OF THIS SERVER, those of IKEv2 too. So, on a node, first
        vpnlb backend drain SERVER
        vpnlb affinity list --backend SERVER      until it is empty, or your maintenance window begins
    and afterwards
        vpnlb backend enable SERVER

    "vpnlb sstp rras SERVER" prints the values for a server, and the same as a script with them filled in.
    Not tried on a Windows server by the project yet: run it with -WhatIf first, on one server.

.PARAMETER Mode
    offload: TLS ends on the nodes, plain HTTP comes here. reencrypt: the nodes speak TLS to this server,
    which must show the same certificate. passthrough: this server ends TLS; its certificate is its own.

.PARAMETER Hash
    SHA-256 of the certificate's DER, 64 hexadecimal digits, as "vpnlb cert list" shows it. Not the
    thumbprint that certificate windows show: that one is SHA-1 and has 40.

.PARAMETER CertificateFile
    The certificate itself (DER, or PEM with the leaf first), instead of -Hash.

.PARAMETER Port
    Where SSTP listens; 80 in offload and 443 otherwise if it is left out.

.PARAMETER Folder
    Where the values of before are saved.

.PARAMETER Restore
    A file that an earlier run saved: its values are written back, and RemoteAccess restarted.
    The certificate of the TLS listener is not among them.

.PARAMETER NoRestart
    Writes the values and leaves the restart to you. They count from then on only.

.EXAMPLE
    .\Set-VpnlbSstp.ps1 -Mode offload -CertificateFile .\vpn.cer -WhatIf

.EXAMPLE
    .\Set-VpnlbSstp.ps1 -Restore C:\ProgramData\vpnlb\sstp-20260301-120000.json
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(SupportsShouldProcess = $true, ConfirmImpact = 'High', DefaultParameterSetName = 'Hash')]
param(
    [Parameter(Mandatory = $true, ParameterSetName = 'Hash')]
    [Parameter(Mandatory = $true, ParameterSetName = 'File')]
    [ValidateSet('offload', 'reencrypt', 'passthrough')]
    [string] $Mode,

    [Parameter(ParameterSetName = 'Hash')]
    [ValidatePattern('^[0-9A-Fa-f]{64}$')]
    [string] $Hash,

    [Parameter(Mandatory = $true, ParameterSetName = 'File')]
    [string] $CertificateFile,

    [Parameter(ParameterSetName = 'Hash')]
    [Parameter(ParameterSetName = 'File')]
    [ValidateRange(1, 65535)]
    [int] $Port,

    [Parameter(Mandatory = $true, ParameterSetName = 'Restore')]
    [string] $Restore,

    [string] $Folder = (Join-Path -Path $env:ProgramData -ChildPath 'vpnlb'),

    [switch] $NoRestart
)

$ErrorActionPreference = 'Stop'
$path = 'HKLM:\SYSTEM\CurrentControlSet\Services\SstpSvc\Parameters'
$service = 'RemoteAccess'
# All that is read, saved and written; a hash stands as hexadecimal digits, what is absent as $null.
$names = 'UseHttps', 'isHashConfiguredByAdmin', 'SHA256CertificateHash', 'SHA1CertificateHash', 'ListenerPort'

function ConvertTo-Hex([byte[]] $bytes) { [BitConverter]::ToString($bytes).Replace('-', '') }

function Read-Value([string] $name) {
    $value = (Get-Item -Path $path).GetValue($name, $null)
    if ($null -eq $value) { return $null }
    if ($name -like '*Hash') { return ConvertTo-Hex $value }
    return [int] $value
}

function Write-Value([string] $name, $value) {
    if ($null -eq $value) {
        if ($null -ne (Read-Value $name)) { Remove-ItemProperty -Path $path -Name $name }
        return
    }
    if ($name -like '*Hash') {
        $bytes = New-Object byte[] ($value.Length / 2)
        for ($i = 0; $i -lt $bytes.Length; $i++) { $bytes[$i] = [Convert]::ToByte($value.Substring(2 * $i, 2), 16) }
        New-ItemProperty -Path $path -Name $name -PropertyType Binary -Value $bytes -Force | Out-Null
        return
    }
    New-ItemProperty -Path $path -Name $name -PropertyType DWord -Value ([int] $value) -Force | Out-Null
}

# The hash of a certificate file, DER or the first block of a PEM.
function Get-FileHashOfCertificate([string] $file) {
    $bytes = [IO.File]::ReadAllBytes((Resolve-Path -LiteralPath $file).ProviderPath)
    $text = [Text.Encoding]::ASCII.GetString($bytes)
    if ($text -match '-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----') {
        $bytes = [Convert]::FromBase64String(($Matches[1] -replace '\s', ''))
    }
    $found = New-Object Security.Cryptography.X509Certificates.X509Certificate2 (, $bytes)
    Write-Verbose "certificate $($found.Subject), valid until $($found.NotAfter)"
    $sha = [Security.Cryptography.SHA256]::Create()
    return ConvertTo-Hex $sha.ComputeHash($found.RawData)
}

# The certificate of the machine's store that has this hash, with its key.
function Find-Certificate([string] $hex) {
    $sha = [Security.Cryptography.SHA256]::Create()
    $found = Get-ChildItem -Path 'Cert:\LocalMachine\My' |
        Where-Object { (ConvertTo-Hex $sha.ComputeHash($_.RawData)) -eq $hex } |
        Select-Object -First 1
    if ($null -eq $found) { throw "no certificate with the SHA-256 $hex in LocalMachine\My: import it with its private key first" }
    if (-not $found.HasPrivateKey) { throw "the certificate $($found.Subject) is here without its private key: import it as a PFX" }
    return $found
}

function Test-Binding($certificate, [int] $port) {
    (netsh.exe http show sslcert "ipport=0.0.0.0:$port" | Out-String) -match $certificate.Thumbprint
}

# Which of the wanted values differ.
function Find-Difference($want) {
    foreach ($name in $want.Keys) {
        $have = Read-Value $name
        if (($null -eq $have) -ne ($null -eq $want[$name]) -or $have -ne $want[$name]) { $name }
    }
}

if (-not (Test-Path -Path $path)) { throw 'no SSTP on this server: install the role service DirectAccess and VPN (RAS) first' }

$want = [ordered] @{}
$certificate = $null
if ($Restore) {
    $saved = Get-Content -LiteralPath $Restore -Raw | ConvertFrom-Json
    foreach ($name in $names) {
        if ($saved.PSObject.Properties.Name -notcontains $name) { throw "$Restore has no word of ${name}: it was not saved by this script" }
        $want[$name] = $saved.$name
    }
} else {
    # Not into $Hash: its pattern holds for every later value too.
    $hex = $Hash.ToUpperInvariant()
    if ($CertificateFile) { $hex = Get-FileHashOfCertificate $CertificateFile }
    if ($Mode -ne 'passthrough' -and -not $hex) { throw "-Mode $Mode needs -Hash or -CertificateFile" }
    if ($Mode -eq 'passthrough' -and $Port -and $Port -ne 443) { throw 'pass-through does not change ports: this server has to listen on 443' }
    $default = 443
    if ($Mode -eq 'offload') { $default = 80 }
    if (-not $Port) { $Port = $default }

    $want['UseHttps'] = [int] ($Mode -ne 'offload')
    if ($hex) {
        $want['isHashConfiguredByAdmin'] = 1
        $want['SHA256CertificateHash'] = $hex
        $want['SHA1CertificateHash'] = $null
    }
    # Absent and 0 mean the default port (check this: netsh http show servicestate).
    if ($Port -ne $default -or @($null, 0, $default) -notcontains (Read-Value 'ListenerPort')) { $want['ListenerPort'] = $Port }

    if ($Mode -ne 'offload') {
        if (-not $hex) { $hex = Read-Value 'SHA256CertificateHash' }
        if (-not $hex) { throw 'no certificate is chosen: choose it in the RRAS console (Properties, Security), or give -Hash' }
        $certificate = Find-Certificate $hex
    }
}

$differences = @(Find-Difference $want)
if ($null -ne $certificate -and -not (Test-Binding $certificate $Port)) { $differences += 'certificate of the listener' }
if ($differences.Count -eq 0) {
    Write-Output "Every value is right already; nothing was changed. If the cluster still tells of a wrong hash, $service was not restarted since."
    return
}
$what = "write $($differences -join ', ')"
if (-not $NoRestart) { $what += " and restart $service, which ends ALL tunnels of this server, IKEv2 too" }
if (-not $PSCmdlet.ShouldProcess($env:COMPUTERNAME, $what)) { return }

New-Item -ItemType Directory -Path $Folder -Force | Out-Null
$file = Join-Path -Path $Folder -ChildPath ('sstp-' + (Get-Date -Format 'yyyyMMdd-HHmmss') + '.json')
$before = [ordered] @{}
foreach ($name in $names) { $before[$name] = Read-Value $name }
$before | ConvertTo-Json | Set-Content -LiteralPath $file -Encoding ASCII
Write-Output "The values before are in $file; -Restore $file writes them back."

if ($differences -contains 'certificate of the listener') { Set-RemoteAccess -SslCertificate $certificate -Confirm:$false }
foreach ($name in $want.Keys) { Write-Value $name $want[$name] }
if ($NoRestart) {
    Write-Warning "$service was not restarted: the values do not count yet"
} else {
    try { Restart-Service -Name $service -Force -Confirm:$false }
    catch { throw "the values are written, but $service did not restart ($_): run Restart-Service -Name $service -Force" }
}

foreach ($name in $names) { Write-Output "$name = $(Read-Value $name)" }
$left = @(Find-Difference $want)
if ($left -contains 'SHA1CertificateHash') {
    # Not a reason to fail: the service may write it anew.
    Write-Warning 'SHA1CertificateHash is back: check this with a test call'
    $left = @($left | Where-Object { $_ -ne 'SHA1CertificateHash' })
}
if ($null -ne $certificate -and -not (Test-Binding $certificate $Port)) { $left += 'certificate of the listener' }
if ($left.Count -ne 0) { throw "read back and still different: $($left -join ', ')" }
Write-Output 'Done. Next, on a node: vpnlb sstp status, then vpnlb backend enable SERVER'
